"""A tokenizer with its chat template: messages to prompt ids, reply ids to text. It knows nothing of models."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy
from transformers import PreTrainedTokenizerBase

from memfactory.errors import ConfigError
from memfactory.model.chat_template import ChatTemplate
from memfactory.model.thinking import CLOSE, OPEN, ThinkTags
from memfactory.types import Message, Role, Scalar

log = logging.getLogger("memfactory")
# Ends of an assistant's turn that a tokenizer may know without naming them its end token.
TURN_ENDS = ("<|im_end|>",)
# Added tokens that steer the model although they are not marked special, such as </think> or [TOOL_CALLS].
_CONTROL = re.compile(r"\s*[<\[{|【｜].*[>\]}|】｜]\s*", re.DOTALL)
# Private-use characters that mark where a look-alike of a special token is broken up before it is encoded.
_MARKS = tuple(chr(point) for point in range(0xE000, 0xF8FF))


class ChatFormat:
    """Turns messages into prompt ids and reply ids into text.

    A message's content never becomes a control token: a special token written out in it is encoded as plain
    characters, and so are other control tokens (`</think>`, `<tool_call>`) unless the assistant itself wrote them.
    Every other prompt has exactly the ids of `tokenizer.apply_chat_template`.

    `stop_ids` are the ids that end a reply: the tokenizer's end token, the control token that the template writes
    behind an assistant's content, `<|im_end|>` where it exists, and `end_ids` (those of the model's generation config).
    `turn_end` is the one of them that the template writes, else the tokenizer's. Ids at or above `vocab_size` stand for
    no token; `rows` is the number of the model's embeddings (None: as many as the tokenizer has tokens).
    Raises ConfigError for a tokenizer without chat template, without offsets, without any end token, or of a larger
    vocabulary than the model.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_options: Mapping[str, Scalar] | None = None,
        *,
        end_ids: Sequence[int] = (),
        rows: int | None = None,
    ) -> None:
        name = tokenizer.name_or_path or "given"
        if not tokenizer.is_fast:
            raise ConfigError(f"the tokenizer of {name!r} is not a fast one (tokenizer.json), so it gives no offsets")
        self.tokenizer, self._name = tokenizer, name
        self._template = ChatTemplate(tokenizer, template_options or {}, name)
        vocabulary = tokenizer.get_vocab()
        added = tokenizer.added_tokens_decoder
        self.vocab_size = max(vocabulary.values()) + 1
        unknown: set[str] = set()
        if rows is not None and self.vocab_size > rows:
            unknown = {token for token, number in vocabulary.items() if number >= rows}
            self._check_rows(unknown, {str(token) for token in added.values()}, rows)
            self.vocab_size = rows
        self._spaces = _begins_with_a_space(tokenizer)
        self._think = ThinkTags(tokenizer, vocabulary)
        named = [vocabulary[end] for end in TURN_ENDS if end in vocabulary]
        # The one that ends the assistant's turn comes first.
        turn_ends = [*self._written_end(added), *named, tokenizer.eos_token_id]
        ends = {*end_ids, *(end for end in turn_ends if end is not None)}
        ends = {number for number in ends if number < self.vocab_size}
        if not ends:
            raise ConfigError(f"the tokenizer of {name!r} has no end token, so a reply would never end")
        self.stop_ids: frozenset[int] = frozenset(ends)
        self.turn_end: int = next((end for end in turn_ends if end in ends), min(ends))
        pad = tokenizer.pad_token_id
        self.pad_id: int = min(ends) if pad is None or pad >= self.vocab_size else pad
        special = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        steering = {str(token) for token in added.values() if _CONTROL.fullmatch(str(token))}
        self._special = _any_of((special | unknown) - self._think.names)
        self._control = _any_of(special | steering | unknown)
        # The episodes of a group ask for the same text one after another.
        self._remembered_offsets = lru_cache(maxsize=16)(self._offsets)
        self._remembered_prompt = lru_cache(maxsize=64)(self._prompt_ids)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids of `messages` and of the opening of the reply.

        Raises ConfigError when the template refuses the messages (a role that it does not know).
        """
        return self._remembered_prompt(tuple(messages))

    def written_reply(self, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """The ids of the last of `messages`, the assistant's, as the template itself writes it behind the opening of a
        reply, up to the token that ends it; with additions of the template, such as an empty think block.

        None if the template writes the whole conversation otherwise than as that opening and a continuation. Raises
        ConfigError when the template refuses the messages.
        """
        mark = _unused_mark(messages)
        opening = self._rendered(messages[:-1], mark, opening=True)
        whole = self._rendered(messages, mark, opening=False)
        if not whole.startswith(opening):
            return None
        ids = self._encoded(whole[len(opening) :], mark, continues=True)
        ends = [place for place, id in enumerate(ids) if id in self.stop_ids]
        if not ends or self.decode(ids[ends[-1] + 1 :]).strip():
            return (*ids, self.turn_end)
        return tuple(ids[: ends[-1] + 1])

    def following_reply(self, prompt_ids: Sequence[int], content: str) -> tuple[int, ...]:
        """The ids of `content` as the reply to a prompt, up to the end token, although the template writes a whole
        conversation otherwise.

        Where the prompt opens thinking (DeepSeek-R1's template), the reply begins with the thinking in `content`, or
        ends it at once: an answer inside unfinished thinking would be none.
        """
        if self._think.opened(prompt_ids):
            content = _thought_first(content)
        message = Message("assistant", content)
        mark = _unused_mark([message])
        return (*self._encoded(self._broken(message, mark), mark, continues=True), self.turn_end)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens, apart from think tags, which read `<think>` and `</think>`."""
        return self._think.decode(ids)

    def frame(self, roles: Sequence[Role]) -> str:
        """The template's text around messages of these roles, with {0}, {1}, ... in place of their contents."""
        return self._template.render([Message(role, f"{{{number}}}") for number, role in enumerate(roles)])

    def reply_text(self, prompt_ids: Sequence[int], reply_ids: Sequence[int]) -> str:
        """The text of a reply, without its end token.

        If the template itself opened a `<think>` tag at the end of the prompt, the text begins with that tag, so that
        it reads the same as one that the model opened.
        """
        ended = bool(reply_ids) and reply_ids[-1] in self.stop_ids
        text = self.decode(reply_ids[:-1] if ended else reply_ids)
        return f"{OPEN}\n{text}" if self._think.opened(prompt_ids) else text

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The half-open character span of every token of `text`, in order, without special tokens."""
        return [(start, end) for start, end in self._remembered_offsets(text).tolist()]

    def _offsets(self, text: str) -> numpy.ndarray:
        """The spans, [tokens, 2]: an array takes a 16th of the memory of tuples."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return numpy.array(encoded["offset_mapping"], numpy.int32).reshape(-1, 2)

    def _prompt_ids(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        mark = _unused_mark(messages)
        return tuple(self._encoded(self._rendered(messages, mark), mark))

    def _rendered(self, messages: Sequence[Message], mark: str, *, opening: bool = True) -> str:
        """The conversation as the template writes it, with the `opening` of a reply behind it if that is set.

        `mark` follows the first character of each look-alike of a control token: encoding is cut there, so that no
        token spans it.
        """
        safe = [Message(message.role, self._broken(message, mark)) for message in messages]
        return self._template.render(safe, opening=opening)

    def _encoded(self, text: str, mark: str, *, continues: bool = False) -> list[int]:
        """The ids of a text that is cut at `mark`; `continues`: other tokens stand before it."""
        ids: list[int] = []
        for number, segment in enumerate(text.split(mark)):
            if self._spaces and (number or continues):
                ids += self._behind_others(segment, mark)
            else:
                ids += self.tokenizer(segment, add_special_tokens=False, verbose=False)["input_ids"]
        beyond = sorted({number for number in ids if number >= self.vocab_size})
        if beyond:
            tokens = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(beyond)))
            raise ConfigError(
                f"the chat template of {self._name!r} writes {tokens}, for which the model has no embedding"
            )
        return ids

    def _behind_others(self, segment: str, mark: str) -> list[int]:
        """The ids of `segment` without the space that the tokenizer puts before a text, by `mark` in its place."""
        encoded = self.tokenizer(mark + segment, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            number
            for number, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if end > len(mark)
        ]

    def _written_end(self, added: Mapping[int, object]) -> list[int]:
        """The control token that the template writes behind an assistant's content; none if it writes no such token."""
        closing = self._template.closing().lstrip()
        ids = self.tokenizer(closing, add_special_tokens=False, verbose=False)["input_ids"]
        return [number for number in ids[:1] if number in added and _CONTROL.fullmatch(str(added[number]))]

    def _broken(self, message: Message, mark: str) -> str:
        """The content with `mark` inside every look-alike of a control token."""
        content = message.content
        pattern = self._special if message.role == "assistant" else self._control
        places = [match.start() + 1 for match in pattern.finditer(content)]
        cuts = [0, *places, len(content)]
        return mark.join(content[a:b] for a, b in pairwise(cuts))

    def _check_rows(self, unknown: set[str], added: set[str], rows: int) -> None:
        """Warn of tokens that were added without the model; raise ConfigError for the vocabulary of another model."""
        if not unknown <= added:
            raise ConfigError(
                f"the tokenizer of {self._name!r} has {self.vocab_size} tokens, but the model has embeddings for "
                f"{rows}: the tokenizer belongs to another model"
            )
        log.warning(
            "model %r: it has no embeddings for %s of its tokenizer, so they are read as plain text",
            self._name,
            ", ".join(repr(token) for token in sorted(unknown)[:5]),
        )


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    """A zero-width pattern that matches at every beginning of one of `tokens`, also of tokens that overlap."""
    return re.compile("|".join(f"(?={re.escape(token)})" for token in sorted(tokens) if token) or "(?!)")


def _thought_first(content: str) -> str:
    """`content` as the reply to a prompt that ends inside thinking: the thinking in it first, or its end at once."""
    if CLOSE in content:
        return content.lstrip().removeprefix(OPEN).lstrip("\n")
    return f"{CLOSE}\n\n{content}"


def _begins_with_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space before each text that it encodes, as SentencePiece does."""
    ids = tokenizer("b", add_special_tokens=False, verbose=False)["input_ids"]
    return str(tokenizer.decode([*ids, *ids])).strip() == "b b"


def _unused_mark(messages: Sequence[Message]) -> str:
    """A character that no message holds."""
    contents = [message.content for message in messages]
    return next(mark for mark in _MARKS if not any(mark in content for content in contents))
