"""The module `full_context_answer`: an answer from the whole conversation, without any memory: a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from memfactory.dialogue import Ask, Asking
from memfactory.episode import Episode
from memfactory.formats.answers import answer_part, keeps_form
from memfactory.formats.render import render_task
from memfactory.registry import MODULES
from memfactory.roles import AnswerModuleOptions, ParsedAnswer, Reader
from memfactory.text import fill, keep_ends, token_counter
from memfactory.types import Codec, Message, Reading

FULL_CONTEXT_PROMPT = """\
Answer the question from the conversation: write **Answer:** and the answer in as few words as possible. Where what is
said contradicts itself, the latest counts.

<conversation>
{conversation}
</conversation>

<question>
{question}
</question>"""


SHORT_PROMPT = """\
{conversation}

Question: {question}
Answer in a few words:"""


class FullContextAnswerOptions(AnswerModuleOptions):
    """Options of `full_context_answer`."""

    limits: ClassVar[Mapping[str, object]] = MappingProxyType({"context_tokens": None})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"short": {"prompt": SHORT_PROMPT}})

    prompt: str = FULL_CONTEXT_PROMPT
    """The prompt; {conversation} and {question} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    context_tokens: int | None = Field(None, ge=1)
    """The most tokens of the conversation in the prompt; null: all."""
    keep: Literal["last", "center", "first"] = "last"
    """The kept part of a longer conversation: its end, its beginning, or both without its middle (center)."""

    @property
    def most_tokens(self) -> int | None:
        return self.context_tokens

    @property
    def answer_prompt(self) -> str:
        return self.prompt

    def without_effect(self) -> Mapping[str, str]:
        return {"keep": "context_tokens is null"} if self.context_tokens is None else {}


@MODULES.register("full_context_answer")
class FullContextAnswer(Reader[FullContextAnswerOptions]):
    """Answers from the whole conversation."""

    steps = ("answer",)

    def __init__(self, options: FullContextAnswerOptions, codec: Codec) -> None:
        super().__init__(options, codec)
        self._tokens = token_counter(codec.offsets)

    def dialogue(self, episode: Episode) -> Asking[ParsedAnswer]:
        text, reading = self.shortened(render_task(episode.task))
        episode.note_reading(reading.read, reading.dropped)
        values = {"conversation": text, "question": episode.task.question}
        prompt = fill(self.options.prompt, values)
        reply = yield Ask("answer", (Message("user", prompt),), self.options.max_tokens)
        part = answer_part(reply.text, self.options.requested_form)
        episode.check("answer", float(keeps_form(part, self.options.requested_form)))
        return self.answer(part)

    def shortened(self, text: str) -> tuple[str, Reading]:
        """`text`, cut to the part that `keep` names if it exceeds `context_tokens`; and the tokens read and dropped."""
        limit = self.options.context_tokens
        if limit is None:
            return text, Reading(self._tokens(text))
        offsets = self.codec.offsets(text)
        if len(offsets) <= limit:
            return text, Reading(len(offsets))
        reading = Reading(limit, len(offsets) - limit)
        if self.options.keep == "center":
            return keep_ends(text, [offsets], limit), reading
        return text[offsets[-limit][0] :] if self.options.keep == "last" else text[: offsets[limit - 1][1]], reading
