"""MemAgent's module: read a long text chunk by chunk, overwrite one memory, answer from it (arXiv 2507.02259)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from memfactory.dialogue import Ask, Asking, Demonstration
from memfactory.episode import Episode
from memfactory.errors import DataError, NoDemonstrationError
from memfactory.formats.answers import in_form
from memfactory.formats.notes import gold_answer, noted
from memfactory.formats.recurrent_prompts import ANSWER_PROMPT, PRESETS, UPDATE_PROMPT, UPDATE_PROMPTS, Order
from memfactory.formats.render import render_task
from memfactory.registry import MODULES, Options
from memfactory.roles import AnswerModuleOptions, ParsedAnswer, Reader
from memfactory.text import (
    Unit,
    after_thinking,
    chunk_cuts,
    fill,
    keep_ends,
    placeholders,
    token_spans,
    unit_cuts,
    unit_ends,
)
from memfactory.types import Codec, Message, Reading


class Prompts(Options):
    """The prompts. `{question}` or `{prompt}`, `{memory}`, and `{section}` or `{chunk}` are filled in."""

    system: str | None = None
    """A system message before each prompt; null: none."""
    update: str = UPDATE_PROMPT
    """Asks for the new memory. The default prompt follows `order`; a prompt of your own must have that order."""
    answer: str = ANSWER_PROMPT
    """Asks for the final answer."""

    @model_validator(mode="after")
    def _placeholders_are_there(self) -> Prompts:
        for name, template, needed in (
            ("update", self.update, (("question", "prompt"), ("memory",), ("section", "chunk"))),
            ("answer", self.answer, (("question", "prompt"), ("memory",))),
        ):
            missing = [
                " or ".join(f"{{{n}}}" for n in names) for names in needed if not placeholders(template) & {*names}
            ]
            if missing:
                raise ValueError(f"the {name} prompt lacks {', '.join(missing)}")
        return self

    @property
    def order(self) -> Order:
        """chunk_first if the whole chunk precedes the memory, else memory_first."""
        chunk = max(self.update.rfind(name) for name in ("{section}", "{chunk}"))
        return "chunk_first" if chunk < self.update.find("{memory}") else "memory_first"


class RecurrentMemoryOptions(AnswerModuleOptions):
    """Options of `recurrent_memory`."""

    limits: ClassVar[Mapping[str, object]] = MappingProxyType({"max_chunks": None, "truncate": "none"})
    presets = PRESETS

    chunk_tokens: int = Field(2500, ge=1)
    """Tokens of one chunk of the text."""
    cut: Literal["tokens", "sentences", "paragraphs"] = "tokens"
    """The end of a chunk: after chunk_tokens tokens, wherever that is, or at the last end of a sentence or paragraph
    that fits. A longer sentence or paragraph is cut by tokens."""
    trim_chunks: bool = False
    """Whether the update prompt leaves out blank lines at the end of a chunk."""
    max_chunks: int | None = Field(None, ge=1)
    """The most chunks that are read; null: all."""
    truncate: Literal["center", "error", "none"] = "center"
    """A text beyond max_chunks: drop its middle (center), stop (error), or read it all (none)."""
    memory_tokens: int = Field(1024, ge=1)
    """The longest memory, in tokens."""
    answer_tokens: int = Field(1024, ge=1)
    """The longest answer, in tokens."""
    empty_memory: str = "No previous memory"
    """The memory before the first chunk."""
    drop_thinking: bool = True
    """Only the text after </think> becomes memory or answer; unfinished thinking leaves the memory as it was."""
    order: Order = "memory_first"
    """The first part of an update prompt: the memory, as published, or the chunk, which all episodes of a task
    then share as a prefix."""
    prompts: Annotated[Prompts, BeforeValidator(lambda value: value, json_schema_input_type=Prompts | str)] = Prompts()
    """Both prompts, or the name of a preset: default, short (plain words for a small model, chunk first, an unboxed
    answer), memagent (the information of MemAgent's own prompts)."""

    @property
    def answer_prompt(self) -> str:
        return self.prompts.answer

    @property
    def most_tokens(self) -> int | None:
        return None if self.max_chunks is None or self.truncate == "none" else self.max_chunks * self.chunk_tokens

    @model_validator(mode="before")
    @classmethod
    def _default_prompt_follows_the_order(cls, values: Any) -> Any:
        values = cls.with_preset(values)
        if not isinstance(values, dict) or values.get("order") not in list(UPDATE_PROMPTS):
            return values
        prompts = values.get("prompts", {})
        texts = prompts.model_dump() if isinstance(prompts, Prompts) else prompts
        if isinstance(texts, dict) and texts.get("update", UPDATE_PROMPT) in UPDATE_PROMPTS.values():
            return {**values, "prompts": {**texts, "update": UPDATE_PROMPTS[values["order"]]}}
        return values

    @field_validator("prompts")
    @classmethod
    def _prompt_has_the_order(cls, prompts: Prompts, info: ValidationInfo) -> Prompts:
        order = info.data.get("order", prompts.order)
        if prompts.order != order:
            raise ValueError(
                f"the update prompt is {prompts.order}, but `order` is {order}: change one of them, "
                "or leave the update prompt out"
            )
        return prompts

    def without_effect(self) -> Mapping[str, str]:
        return {"truncate": "max_chunks is null"} if self.max_chunks is None else {}


@dataclass(frozen=True)
class _Cut:
    """The part of a text that is read, the places of its cuts into chunks, its tokens, and the tokens of the text."""

    text: str
    places: tuple[int, ...]
    read: int
    tokens: int


@MODULES.register("recurrent_memory")
class RecurrentMemoryModule(Reader[RecurrentMemoryOptions]):
    """Reads a text chunk by chunk into one memory that each reply overwrites, then answers from the memory."""

    steps = ("update", "answer")
    answers_last = True
    demonstrates = ("taken", "same", "answer")

    def __init__(self, options: RecurrentMemoryOptions, codec: Codec) -> None:
        super().__init__(options, codec)
        # The episodes of a task read the same text one after another.
        self._cached_cut = lru_cache(maxsize=16)(self._cut)

    def chunks(self, context: str, task_id: str) -> Iterator[str]:
        """The chunks of `context`, one at a time; `truncate` is the rule for a text beyond `max_chunks`.

        Only the text and the places of its cuts are in memory. Raises DataError for a text beyond `max_chunks` under
        `truncate: error`.
        """
        options, limit = self.options, self.options.most_tokens
        cut = self._cached_cut(context)
        if options.truncate == "error" and options.cut != "tokens" and limit is not None:
            self._check_number(len(cut.places) - 1, task_id)
        elif limit is not None and cut.tokens > limit and options.truncate == "error":
            raise DataError(
                f"the context of task {task_id!r} has {cut.tokens} tokens, but max_chunks x chunk_tokens is "
                f"{options.max_chunks} x {options.chunk_tokens} = {limit}; raise one or set truncate: center"
            )
        return (cut.text[start:end] for start, end in pairwise(cut.places))

    def _check_number(self, chunks: int, task_id: str) -> None:
        limit = self.options.max_chunks
        if limit is not None and chunks > limit:
            raise DataError(
                f"the context of task {task_id!r} has {chunks} chunks of {self.options.cut}, but max_chunks is "
                f"{limit}; raise it or chunk_tokens, or set truncate: center"
            )

    def reading(self, context: str) -> Reading:
        """The tokens of `context` that its chunks hold, and those that they leave out."""
        cut = self._cached_cut(context)
        return Reading(cut.read, cut.tokens - cut.read)

    def _cut(self, context: str) -> _Cut:
        return self._cut_by_tokens(context) if self.options.cut == "tokens" else self._cut_by_units(context)

    def _cut_by_units(self, context: str) -> _Cut:
        """The chunks by sentences or paragraphs; center truncation drops the chunks in the middle."""
        options, spans = self.options, token_spans(context, self.codec.offsets)
        unit: Unit = "sentences" if options.cut == "sentences" else "paragraphs"
        cuts, before = unit_cuts(context, spans, options.chunk_tokens, unit_ends(context, unit))
        tokens, limit = before[-1], options.max_chunks
        if limit is None or len(cuts) - 1 <= limit or options.truncate != "center":
            return _Cut(context, tuple(cuts), tokens, tokens)
        head, tail = limit - limit // 2, len(cuts) - 1 - limit // 2
        dropped = cuts[tail] - cuts[head]
        places = (*cuts[: head + 1], *(place - dropped for place in cuts[tail + 1 :]))
        text = context[: cuts[head]] + context[cuts[tail] :]
        return _Cut(text, places, tokens - (before[tail] - before[head]), tokens)

    def _cut_by_tokens(self, context: str) -> _Cut:
        size, limit = self.options.chunk_tokens, self.options.most_tokens
        cuts, tokens = chunk_cuts(context, token_spans(context, self.codec.offsets), size)
        read = tokens
        if limit is not None and tokens > limit and self.options.truncate == "center":
            context = keep_ends(context, token_spans(context, self.codec.offsets), limit)
            cuts, _ = chunk_cuts(context, token_spans(context, self.codec.offsets), size)
            if len(cuts) > (self.options.max_chunks or 0) + 1:
                # Without its middle, two tokens can join into others, a few more than before.
                cuts = [*cuts[: self.options.max_chunks], cuts[-1]]
            read = limit
        return _Cut(context, tuple(cuts), read, tokens)

    def dialogue(self, episode: Episode) -> Asking[ParsedAnswer]:
        options, task = self.options, episode.task
        episode.memory = episode.memory or options.empty_memory
        text = render_task(task)
        chunks, reading = self.chunks(text, task.id), self.reading(text)
        episode.note_reading(reading.read, reading.dropped)
        for chunk in chunks:
            values = {"question": task.question, "prompt": task.question, "memory": episode.memory}
            shown = _trimmed(chunk) if options.trim_chunks else chunk
            values |= {"section": shown, "chunk": shown}
            reply = yield self._ask("update", options.prompts.update, values, options.memory_tokens)
            memory = after_thinking(reply.text) if options.drop_thinking else reply.text
            if memory is not None:
                episode.memory = memory.strip()
        values = {"question": task.question, "prompt": task.question, "memory": episode.memory}
        reply = yield self._ask("answer", options.prompts.answer, values, options.answer_tokens)
        return self.answer(reply.text, drop_thinking=options.drop_thinking)

    def demonstrate(self, episode: Episode, ask: Ask) -> Demonstration:
        """The evidence of a chunk joins the memory (`taken`), or the memory stays (`same`); at the end the answer."""
        task, options = episode.task, self.options
        note = () if episode.memory == options.empty_memory else tuple(episode.memory.split("\n"))
        if ask.step == "update":
            read = sum(turn.step == "update" for turn in episode.turns)
            cut = self._cached_cut(render_task(task))
            start, end = cut.places[read : read + 2]
            after = noted(cut.text[start:end], note, task)
            shown = Demonstration("\n".join(after) or options.empty_memory, "same" if after == note else "taken")
        else:
            shown = Demonstration(in_form(gold_answer(note, task), options.requested_form), "answer")
        # The end token takes one.
        tokens = len(self.codec.offsets(shown.reply)) + 1
        if tokens > ask.max_tokens:
            raise NoDemonstrationError(f"a reply of step {ask.step!r} needs more than {ask.max_tokens} tokens")
        return shown

    def _ask(self, step: str, template: str, values: dict[str, str], max_tokens: int) -> Ask:
        system = self.options.prompts.system
        opening = () if system is None else (Message("system", system),)
        return Ask(step, (*opening, Message("user", fill(template, values))), max_tokens)


def _trimmed(chunk: str) -> str:
    """`chunk` without the end of its last line and the blank lines behind it."""
    shown = chunk.rstrip()
    return shown if "\n" in chunk[len(shown) :] else chunk
