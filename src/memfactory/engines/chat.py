"""A tokenizer with its chat template: messages to prompt ids, reply ids to text. It knows nothing of models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from memfactory.errors import ConfigError
from memfactory.types import Message, Scalar

# Ends of an assistant's turn that a tokenizer may know without naming them its end token.
TURN_ENDS = ("<|im_end|>",)
# Private-use characters that mark where a look-alike of a special token is broken up before it is encoded.
_MARKS = tuple(chr(point) for point in range(0xE000, 0xF8FF))


class ChatFormat:
    """Turns messages into prompt ids and reply ids into text.

    What a message says can never become a control token: a special token written out in its content is encoded as
    plain characters. Every other prompt has exactly the ids of `tokenizer.apply_chat_template`.

    `stop_ids` are the ids that end a reply: the tokenizer's end token, `<|im_end|>` where it exists, and
    `end_ids` (those of the model's generation config). Ids at or above `vocab_size` stand for no token.
    Raises ConfigError for a tokenizer without chat template, without offsets or without any end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_options: Mapping[str, Scalar] | None = None,
        *,
        end_ids: Sequence[int] = (),
    ) -> None:
        name = tokenizer.name_or_path or "given"
        if not tokenizer.is_fast:
            raise ConfigError(f"the tokenizer of {name!r} is not a fast one (tokenizer.json), so it gives no offsets")
        if not tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer of {name!r} has no chat template; name a Jinja file in model.chat_template"
            )
        self.tokenizer = tokenizer
        self.template_options = dict(template_options or {})
        vocabulary = tokenizer.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        ends = {*end_ids, *(vocabulary[end] for end in TURN_ENDS if end in vocabulary)}
        if tokenizer.eos_token_id is not None:
            ends.add(tokenizer.eos_token_id)
        if not ends:
            raise ConfigError(f"the tokenizer of {name!r} has no end token, so a reply would never end")
        self.stop_ids: frozenset[int] = frozenset(ends)
        self.pad_id: int = min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        # Zero-width, so that look-alikes that overlap are all found.
        self._special = re.compile("|".join(f"(?={re.escape(token)})" for token in sorted(special)) or "(?!)")
        # The episodes of a group ask for the same text one after another.
        self._remembered_offsets = lru_cache(maxsize=16)(self._offsets)
        self._remembered_prompt = lru_cache(maxsize=64)(self._prompt_ids)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids of `messages` and of the opening of the reply.

        Raises ConfigError when the template refuses the messages (a role that it does not know).
        """
        return self._remembered_prompt(tuple(messages))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def reply_text(self, prompt_ids: Sequence[int], reply_ids: Sequence[int]) -> str:
        """The text of a reply, without its end token.

        Where the template itself opened a `<think>` tag at the end of the prompt, the text begins with that tag, so
        that it reads the same whoever opened it.
        """
        ended = bool(reply_ids) and reply_ids[-1] in self.stop_ids
        text = self.decode(reply_ids[:-1] if ended else reply_ids)
        opened = self.decode(prompt_ids[-8:]).rstrip().endswith("<think>")
        return f"<think>\n{text}" if opened else text

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The half-open character span of every token of `text`, in order, without special tokens."""
        return [(start, end) for start, end in self._remembered_offsets(text).tolist()]

    def _offsets(self, text: str) -> numpy.ndarray:
        """The spans, [tokens, 2]: an array takes a 16th of the memory of tuples."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return numpy.array(encoded["offset_mapping"], numpy.int32).reshape(-1, 2)

    def _prompt_ids(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        contents = [message.content for message in messages]
        mark = next(mark for mark in _MARKS if not any(mark in content for content in contents))
        # The mark goes behind the first character of each look-alike; there no token can begin or go on.
        safe = [self._broken(content, mark) for content in contents]
        conversation = [
            {"role": message.role, "content": content} for message, content in zip(messages, safe, strict=True)
        ]
        try:
            text = self.tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, **self.template_options
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(f"the chat template refuses a conversation with the roles {roles}: {error}") from error
        ids: list[int] = []
        for piece in text.split(mark):
            ids += self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(ids)

    def _broken(self, content: str, mark: str) -> str:
        """`content` with `mark` inside every text that would be read as a special token."""
        places = [match.start() + 1 for match in self._special.finditer(content)]
        cuts = [0, *places, len(content)]
        return mark.join(content[a:b] for a, b in pairwise(cuts))
