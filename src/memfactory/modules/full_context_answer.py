"""The module `full_context_answer`: an answer from the whole conversation, without any memory: a baseline."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from memfactory.dialogue import Ask, Asking, Module, ModuleOptions
from memfactory.memory.wording import whole
from memfactory.registry import MODULES
from memfactory.text import after_marker, fill, keep_ends
from memfactory.types import Episode, Message

FULL_CONTEXT_PROMPT = """\
Answer the question from the conversation: write **Answer:** and the answer in as few words as possible. Where what is
said contradicts itself, the latest counts.

<conversation>
{conversation}
</conversation>

<question>
{question}
</question>"""


class FullContextAnswerOptions(ModuleOptions):
    """Options of `full_context_answer`."""

    prompt: str = FULL_CONTEXT_PROMPT
    """The wording; {conversation} and {question} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    context_tokens: int | None = Field(None, ge=1)
    """The most tokens of the conversation that are shown; null: all of it."""
    keep: Literal["last", "center", "first"] = "last"
    """What is kept of a longer one: its end, its beginning, or both without its middle (center)."""


@MODULES.register("full_context_answer")
class FullContextAnswer(Module):
    """Answers from the whole conversation."""

    Options: ClassVar[type[FullContextAnswerOptions]] = FullContextAnswerOptions
    options: FullContextAnswerOptions
    roles = ("reader",)
    steps = ("answer",)

    def dialogue(self, episode: Episode) -> Asking:
        values = {"conversation": self.shortened(whole(episode.task)), "question": episode.task.question}
        prompt = fill(self.options.prompt, values)
        reply = yield Ask("answer", (Message("user", prompt),), self.options.max_tokens)
        episode.answer = after_marker(reply.text)
        episode.check("answer", 0.0 if episode.answer is None else 1.0)

    def shortened(self, text: str) -> str:
        """`text`, or the declared part of it where it has more than `context_tokens` tokens."""
        limit = self.options.context_tokens
        if limit is None:
            return text
        offsets = self.codec.offsets(text)
        if len(offsets) <= limit:
            return text
        if self.options.keep == "center":
            return keep_ends(text, [offsets], limit)
        return text[offsets[-limit][0] :] if self.options.keep == "last" else text[: offsets[limit - 1][1]]
