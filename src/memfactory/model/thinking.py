"""The tags around a model's thinking: those of every tokenizer read as `<think>` and `</think>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
# The models that write them: Qwen3 and DeepSeek; Magistral; Seed-OSS; Command A; Kimi.
_PAIRS = (
    (OPEN, CLOSE),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
_TAIL = 16


class ThinkTags:
    """The think tags among the tokens of `tokenizer`, whose ids are in `vocabulary`, and the texts of ids with them.

    A tag stays in the text even if the tokenizer marks it special, because the text inside is not the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        pairs = [(one, two) for one, two in _PAIRS if one in vocabulary and two in vocabulary]
        self.names = frozenset(name for pair in pairs for name in pair)
        tags = {vocabulary[name]: tag for pair in pairs for name, tag in zip(pair, (OPEN, CLOSE), strict=True)}
        added = tokenizer.added_tokens_decoder
        # Tags that plain decoding leaves out, or writes otherwise.
        self._rewritten = {
            number: tag
            for number, tag in tags.items()
            if str(tokenizer.convert_ids_to_tokens(number)) != tag or (number in added and added[number].special)
        }
        self._openings = {number for number, tag in tags.items() if tag == OPEN}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens, and with `<think>` and `</think>` for think tags."""
        if self._rewritten.keys().isdisjoint(ids):
            return self._plain(ids)
        parts = groupby(ids, key=self._rewritten.get)
        return "".join(self._plain(list(part)) if tag is None else tag * len(list(part)) for tag, part in parts)

    def opened(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the reply to this prompt begins inside thinking, because the prompt ends with an opening tag.

        A message that ends with the letters of a tag opens nothing: its tag is broken up into other tokens.
        """
        tail = list(prompt_ids[-_TAIL:])
        if self._openings:
            place = next((place for place in reversed(range(len(tail))) if tail[place] in self._openings), None)
            return place is not None and not self._whole(tail[place + 1 :]).strip()
        return self._whole(tail).rstrip().endswith(OPEN)

    def _plain(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # A list of texts comes only of a batch of ids.
        return cast(str, text)

    def _whole(self, ids: Sequence[int]) -> str:
        return cast(str, self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
