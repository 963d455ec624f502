"""The policy's own weights as an engine, through transformers, with continuous batching.

Conversations decode side by side; a finished one leaves at once and a waiting one takes its place. Equal prompts are
prefilled once. It does not know the purpose of the conversations.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from memfactory.engines.base import Key
from memfactory.engines.hf.forward import Forward
from memfactory.engines.hf.prompts import CopiedPrompts, Group, Prompts
from memfactory.engines.hf.requests import Row, Waiting
from memfactory.engines.hf.sampling import SamplingBatch, sample_tokens, uniforms
from memfactory.engines.hf.shared_prompts import SharedPrompts
from memfactory.engines.options import HfEngineConfig
from memfactory.errors import EngineError, PromptTooLong
from memfactory.model.chat import ChatFormat
from memfactory.types import Message, Reply, Sampling

log = logging.getLogger("memfactory")
# A CPU spends more on attention to this many tokens than on the call for it, so that longer prompts stay shared. On a
# GPU every call is a launch, and copying always pays.
_COPIED_TOKENS = 256


class HfEngine:
    """Samples replies from `model` itself, so each reply comes from the newest weights.

    While conversations are pending the weights must not change, since sampling may be from a copy of them, and the
    model is in eval mode. When none is left, its mode and its attention kernel are restored, and the memory of cache
    and copy is freed. Ids without a token of the tokenizer are never sampled, and the model's own generation defaults
    play no part.
    A reply's randomness comes from its own `Sampling.seed`.
    Weights in float32 compute in `compute_dtype` (autocast), as in the trainer; None: in float32.
    Raises ConfigError for a model with sliding or chunked attention, PromptTooLong for a prompt that does not fit the
    model's context, EngineError for logits that are not finite and for running out of memory.
    """

    gives_tokens = True

    def __init__(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        config: HfEngineConfig,
        *,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.chat, self.config = chat, config
        self._forward = Forward(
            model,
            chat.vocab_size,
            chat.pad_id,
            compute_dtype or torch.float32,
            config.packed_limit,
            config.weight_copy,
        )
        # Chosen at the first step: adapters can still be added until then.
        self._prompts: Prompts | None = None
        self._waiting: Waiting = {}
        self._rows: list[Row] = []
        # Admitted, and not yet decoding.
        self._entering: list[Row] = []
        # Lower than configured once memory has run out.
        self._max_rows, self._max_tokens = config.max_batch, config.max_batch_tokens
        self._next_ids = torch.zeros(0, dtype=torch.long)
        self._sampling: SamplingBatch | None = None

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        """Queue a conversation."""
        prompt = self.chat.prompt_ids(messages)
        limit = self.room(len(prompt), sampling.max_tokens)
        row = Row(key, prompt, sampling, limit, uniforms(sampling.seed))
        self._waiting.setdefault(prompt, deque()).append(row)

    def check(self, messages: Sequence[Message]) -> None:
        self.room(len(self.chat.prompt_ids(messages)), 1)

    def room(self, prompt: int, requested: int) -> int:
        """The number of reply tokens, at most `requested`, that fit the context behind `prompt` tokens; at least 1."""
        context = self._forward.context
        if context is None:
            return requested
        if prompt >= context:
            raise PromptTooLong.of(prompt, context, "Shorten the chunks or the memory")
        return min(requested, context - prompt)

    def step(self) -> list[tuple[Key, Reply]]:
        """Generate one token for every running conversation; return the finished replies.

        When memory runs out, the running conversations begin again with half as many rows at a time, and with the same
        replies, as each has its own seed.
        """
        while self.pending():
            try:
                finished = self._step()
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            except BaseException:
                self.cancel()
                raise
            else:
                if not self.pending():
                    self.cancel()
                return finished
            # Only out here is the failed step's memory free: the exception held on to its frames and their tensors.
            self._shrink(reason)
        return []

    def _step(self) -> list[tuple[Key, Reply]]:
        with self._forward.computing():
            if self._prompts is None:
                self._prompts = self._chosen()
            self._enter(self._prompts)
            return self._advance(self._prompts)

    def _shrink(self, reason: str) -> None:
        """Begin all running conversations again, half as many at a time; EngineError if there is only one."""
        running = len(self._rows) + len(self._entering)
        if running <= 1 or self._prompts is None:
            self.cancel()
            raise EngineError(
                f"{self._forward.device} ran out of memory while sampling ({reason}); lower engine.max_batch_tokens "
                f"(now {self.config.max_batch_tokens}), engine.prefill_tokens or engine.max_batch"
            )
        self._prompts.clear()
        self._prompts.shrink()
        self._forward.free_cache()
        self._max_rows, self._max_tokens = max(1, running // 2), max(1, self._max_tokens // 2)
        log.warning(
            "out of memory while sampling %d rows: at most %d rows with %d tokens from here on; lower engine.max_batch "
            "or engine.max_batch_tokens (%s)",
            running,
            self._max_rows,
            self._max_tokens,
            reason,
        )
        again = [row.restarted() for row in (*self._rows, *self._entering)]
        rows = [*again, *(row for queue in self._waiting.values() for row in queue)]
        self._waiting, self._rows, self._entering, self._sampling = {}, [], [], None
        for row in rows:
            self._waiting.setdefault(row.prompt, deque()).append(row)

    def pending(self) -> int:
        return len(self._rows) + len(self._entering) + sum(map(len, self._waiting.values()))

    def cancel(self) -> None:
        self._waiting.clear()
        self._rows.clear()
        self._entering.clear()
        if self._prompts is not None:
            self._prompts.clear()
        self._sampling = None
        self._forward.sleep()

    def close(self) -> None:
        """Release the caches."""
        self.cancel()

    def _chosen(self) -> Prompts:
        forward, prefill_tokens, budget = self._forward, self.config.prefill_tokens, self.config.max_batch_tokens
        if self.config.share_prefixes and forward.use_tree_attention():
            copied = _COPIED_TOKENS if forward.device.type == "cpu" else None
            return SharedPrompts(forward, prefill_tokens, budget, copied)
        return CopiedPrompts(forward, prefill_tokens, budget)

    def _enter(self, prompts: Prompts) -> None:
        """Let waiting conversations begin."""
        groups = self._admitted(prompts)
        if not groups:
            return
        self._entering = [row for group in groups for row in group]
        begun = prompts.enter(groups, self._rows, self._waiting)
        last = torch.tensor([row.prompt[-1] for row in begun], device=self._forward.device)
        self._next_ids = torch.cat([self._next_ids, last]) if self._rows else last
        self._rows += begun
        self._entering = []
        self._sampling = None

    def _admitted(self, prompts: Prompts) -> list[Group]:
        """Take waiting conversations, first come first served, while `max_batch` and `max_batch_tokens` have room."""
        decoding = max((prompts.columns(row, alone=False) for row in self._rows), default=0)
        admitted: list[Row] = []
        groups: list[Group] = []
        order = list(self._waiting)
        for place, prompt in enumerate(order):
            queue, group = self._waiting[prompt], Group()
            alone, following = len(queue) == 1, order[place + 1] if place + 1 < len(order) else ()
            while queue and (count := len(self._rows) + len(admitted)) < self._max_rows:
                # Anew for each: the rows admitted so far reserve less if this one shares a prefix with them.
                columns = max((prompts.columns(row, alone=False) for row in admitted), default=decoding)
                columns = max(decoding, columns, prompts.columns(queue[0], alone, following))
                if count and (count + 1) * columns + prompts.cost(prompt) > self._max_tokens:
                    break
                group.append(queue.popleft())
                prompts.admit(group[-1], alone)
                admitted.append(group[-1])
            if group:
                groups.append(group)
            if queue:
                break
            del self._waiting[prompt]
        return groups

    def _advance(self, prompts: Prompts) -> list[tuple[Key, Reply]]:
        """One token for every row; the rows that end with it leave."""
        rows = self._rows
        logits = prompts.logits(rows, self._next_ids)
        if self._sampling is None:
            self._sampling = SamplingBatch.of([row.sampling.params for row in rows], logits.shape[-1], logits.device)
        uniform = torch.tensor([next(row.uniforms) for row in rows], dtype=torch.float64).to(logits.device)
        ids, logprobs = sample_tokens(logits, self._sampling, uniform)
        self._next_ids = ids
        self._forward.cache.lengths += 1
        # The one transfer of the step, ids and log-probabilities in one tensor: float64 holds every id exactly.
        sampled = torch.stack([ids.double(), logprobs.double()]).tolist()
        leaving, finished = [], []
        for index, (row, number, logprob) in enumerate(zip(rows, *sampled, strict=True)):
            if not math.isfinite(logprob):
                raise EngineError("the model's logits are not finite: its weights are broken or overflow its type")
            row.reply_ids.append(int(number))
            row.logprobs.append(logprob)
            reply = row.reply(self.chat)
            if reply is not None:
                leaving.append(index)
                finished.append((row.key, reply))
        if leaving:
            order = prompts.leave(rows, leaving)
            self._next_ids = self._next_ids[torch.tensor(order, dtype=torch.long, device=ids.device)]
            self._rows = [rows[index] for index in order]
            self._sampling = None
        return finished
