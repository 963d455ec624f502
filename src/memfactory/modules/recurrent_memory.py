"""MemAgent's module: read a long text chunk by chunk, overwrite one memory, answer from it (arXiv 2507.02259)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from memfactory.dialogue import Ask, Asking, Module, ModuleOptions
from memfactory.errors import DataError
from memfactory.memory.wording import whole
from memfactory.registry import MODULES, Options
from memfactory.text import after_thinking, fill, keep_ends, placeholders, split_chunks
from memfactory.types import Episode, Message

UPDATE_PROMPT = """\
Read the section and rewrite the memory: keep what helps with the problem, add what is new, correct what has changed.

<problem>
{question}
</problem>

<memory>
{memory}
</memory>

<section>
{section}
</section>

Updated memory:"""

ANSWER_PROMPT = """\
Solve the problem from the memory and write the answer inside \\boxed{}.

<problem>
{question}
</problem>

<memory>
{memory}
</memory>

Answer:"""


class Prompts(Options):
    """The wording. `{question}` or `{prompt}`, `{memory}`, and `{section}` or `{chunk}` are filled in."""

    system: str | None = None
    """A system message before each prompt; null: none."""
    update: str = UPDATE_PROMPT
    """Asks for the new memory."""
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


class RecurrentMemoryOptions(ModuleOptions):
    """Options of `recurrent_memory`."""

    chunk_tokens: int = Field(2500, ge=1)
    """Tokens of one section of the text."""
    max_chunks: int | None = Field(None, ge=1)
    """The most sections that are read; null: as many as there are."""
    truncate: Literal["center", "error", "none"] = "center"
    """A text beyond max_chunks: drop its middle (center), stop (error), or read it all (none)."""
    memory_tokens: int = Field(1024, ge=1)
    """The longest memory, in tokens."""
    answer_tokens: int = Field(1024, ge=1)
    """The longest answer, in tokens."""
    empty_memory: str = "No previous memory"
    """What stands for the memory before the first section."""
    drop_thinking: bool = True
    """Only what follows </think> becomes memory or answer; unfinished thinking leaves the memory as it was."""
    prompts: Prompts = Prompts()
    """The wording of both prompts."""


@MODULES.register("recurrent_memory")
class RecurrentMemoryModule(Module):
    """Reads a text chunk by chunk into one memory that each reply overwrites, then answers from the memory."""

    Options: ClassVar[type[RecurrentMemoryOptions]] = RecurrentMemoryOptions
    options: RecurrentMemoryOptions
    steps = ("update", "answer")

    def chunks(self, context: str, task_id: str) -> list[str]:
        """The sections of `context` under the declared rule for what is too long.

        Raises DataError for a text beyond `max_chunks` under `truncate: error`.
        """
        options, offsets = self.options, self.codec.offsets(context)
        limit = None if options.max_chunks is None else options.max_chunks * options.chunk_tokens
        if limit is not None and len(offsets) > limit and options.truncate != "none":
            if options.truncate == "error":
                raise DataError(
                    f"the context of task {task_id!r} has {len(offsets)} tokens, but max_chunks x chunk_tokens is "
                    f"{options.max_chunks} x {options.chunk_tokens} = {limit}; raise one or set truncate: center"
                )
            context = keep_ends(context, offsets, limit)
            offsets = self.codec.offsets(context)
        pieces = split_chunks(context, offsets, options.chunk_tokens)
        if limit is not None and options.truncate == "center" and len(pieces) > (options.max_chunks or 0):
            # Cutting out the middle can join two tokens into others, a few more than there were.
            keep = (options.max_chunks or 1) - 1
            pieces = [*pieces[:keep], "".join(pieces[keep:])]
        return pieces

    def dialogue(self, episode: Episode) -> Asking:
        options, task = self.options, episode.task
        episode.memory = options.empty_memory
        for section in self.chunks(whole(task), task.id):
            values = {"question": task.question, "prompt": task.question, "memory": episode.memory}
            values |= {"section": section, "chunk": section}
            reply = yield self._ask("update", options.prompts.update, values, options.memory_tokens)
            memory = after_thinking(reply.text) if options.drop_thinking else reply.text
            if memory is not None:
                episode.memory = memory.strip()
        values = {"question": task.question, "prompt": task.question, "memory": episode.memory}
        reply = yield self._ask("answer", options.prompts.answer, values, options.answer_tokens)
        episode.answer = after_thinking(reply.text) if options.drop_thinking else reply.text

    def _ask(self, step: str, template: str, values: dict[str, str], max_tokens: int) -> Ask:
        system = self.options.prompts.system
        opening = () if system is None else (Message("system", system),)
        return Ask(step, (*opening, Message("user", fill(template, values))), max_tokens)
