"""Requests to vLLM and its replies, the same in this process and over HTTP. No torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memfactory.engines.base import stop_place
from memfactory.errors import PromptTooLong
from memfactory.types import Reply, Sampling, Stop, Tokens

if TYPE_CHECKING:
    from memfactory.model.chat import ChatFormat

log = logging.getLogger("memfactory")
NEVER = -100.0
MOST_BIASES = 1024
"""The number of biased ids above which vLLM refuses a request."""
CHEAP_BIASES = 128
"""The number up to which biases cost little. vLLM's older runner sets them again for all rows whenever one comes or
goes: 9 ms for 267 ids and 256 rows."""


class Conversations:
    """The ids of prompts and the texts of replies for a model whose context is `context` tokens.

    `rows`: the rows of the model's head; those beyond the tokenizer are not tokens. A bias keeps up to
    CHEAP_BIASES of them from being sampled; with `random` weights up to MOST_BIASES, since training has not made them
    unlikely. A reply ends before an id without a bias, as if cut by length.
    """

    def __init__(self, chat: ChatFormat, *, context: int, rows: int, random: bool = False) -> None:
        self.chat, self.context = chat, context
        beyond = range(chat.vocab_size, rows)
        is_biased = len(beyond) <= (MOST_BIASES if random else CHEAP_BIASES)
        self._no_tokens = dict.fromkeys(beyond, NEVER) if is_biased else {}
        self._ended_early = False

    def check(self, prompt: Sequence[int]) -> None:
        """Raise PromptTooLong for a prompt that leaves no room for a reply."""
        if len(prompt) >= self.context:
            remedy = "Shorten the chunks or the memory, or raise engine.max_model_len"
            raise PromptTooLong.of(len(prompt), self.context, remedy)

    def parameters(self, prompt: Sequence[int], sampling: Sampling) -> dict[str, Any]:
        """The sampling parameters of one reply, all explicit, so that no default of a model or a server counts.

        Raises PromptTooLong for a prompt that leaves no room for a reply.
        """
        self.check(prompt)
        sampling_params = sampling.params
        return {
            "max_tokens": min(sampling.max_tokens, self.context - len(prompt)),
            "temperature": sampling_params.temperature,
            "top_p": sampling_params.top_p,
            "top_k": sampling_params.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(self.chat.stop_ids),
            "logit_bias": self._no_tokens or None,
            # Of the sampled token alone.
            "logprobs": 0,
        }

    def reply(
        self,
        prompt: tuple[int, ...],
        sampling: Sampling,
        reply_ids: tuple[int, ...],
        logprobs: Sequence[float],
        finish_reason: str | None,
    ) -> Reply:
        """The reply that vLLM's output describes."""
        end_id = next((place for place, token in enumerate(reply_ids) if token >= self.chat.vocab_size), None)
        if end_id is not None:
            reply_ids, logprobs, finish_reason = reply_ids[:end_id], logprobs[:end_id], "length"
            self._warn_of_padding()
        # A greedy reply is certain under the distribution that it was drawn from.
        certain = sampling.params.temperature == 0
        stop: Stop = "length" if finish_reason == "length" else "stop"
        text = self.chat.reply_text(prompt, reply_ids)
        ended = bool(reply_ids) and reply_ids[-1] in self.chat.stop_ids
        end = None if ended else stop_place(text, sampling.stop)
        return Reply(
            text[:end], stop, Tokens(prompt, reply_ids, tuple(0.0 if certain else logprob for logprob in logprobs))
        )

    def _warn_of_padding(self) -> None:
        """Warn once of a reply with an id that is no token."""
        if not self._ended_early:
            self._ended_early = True
            log.warning(
                "vLLM sampled an id without a token: the model's head is longer than its tokenizer (%s ids). Such a "
                "reply ends before it, as if cut by length. The engine hf never samples one",
                f"{self.chat.vocab_size:,}",
            )
