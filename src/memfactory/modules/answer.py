"""The module `answer`: Memory-R1's answer agent, which first names the memories that help (arXiv 2508.19828)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import Field, model_validator

from memfactory.dialogue import Ask, Asking
from memfactory.episode import Episode
from memfactory.formats.answers import answer_part, keeps_form
from memfactory.formats.render import bullet_list, render_item
from memfactory.registry import MODULES
from memfactory.roles import Answerer, AnswerModuleOptions, ParsedAnswer
from memfactory.text import fill
from memfactory.types import MemoryItem, Message

ANSWER_PROMPT = """\
Answer the question from the memories. First copy those that help, each on a line that begins with "- ". Then write
**Answer:** and the answer in as few words as possible. Where memories contradict each other, the latest counts.

<memory>
{memory}
</memory>

<question>
{question}
</question>"""

DIRECT_PROMPT = """\
Answer the question from the memories: write **Answer:** and the answer in as few words as possible. Where memories
contradict each other, the latest counts.

<memory>
{memory}
</memory>

<question>
{question}
</question>"""


SHORT_PROMPT = """\
{memory}

Question: {question}
Answer in a few words:"""


class AnswerOptions(AnswerModuleOptions):
    """Options of `answer`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"short": {"prompt": SHORT_PROMPT}})

    prompt: str = ANSWER_PROMPT
    """The prompt; {memory} and {question} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    distill: bool = True
    """Whether the default prompt asks to copy the memories that help before the answer."""

    @property
    def answer_prompt(self) -> str:
        return self.prompt

    @model_validator(mode="before")
    @classmethod
    def _default_prompt_follows_distill(cls, values: Any) -> Any:
        values = cls.with_preset(values)
        if isinstance(values, dict) and values.get("distill") is False and "prompt" not in values:
            return {**values, "prompt": DIRECT_PROMPT}
        return values

    def without_effect(self) -> Mapping[str, str]:
        is_custom = self.prompt not in (ANSWER_PROMPT, DIRECT_PROMPT, SHORT_PROMPT)
        return {"distill": "prompt is not the default one"} if is_custom else {}


@MODULES.register("answer")
class AnswerModule(Answerer[AnswerOptions]):
    """Answers from the retrieved memories, after copying those that help."""

    steps = ("answer",)

    def dialogue(self, episode: Episode, items: Sequence[MemoryItem]) -> Asking[ParsedAnswer]:
        options = self.options
        values = {"memory": render_memories(items), "question": episode.task.question}
        reply = yield Ask("answer", (Message("user", fill(options.prompt, values)),), options.max_tokens)
        part = answer_part(reply.text, options.requested_form)
        episode.check("answer", float(keeps_form(part, options.requested_form)))
        return self.answer(part)


def render_memories(items: Sequence[MemoryItem]) -> str:
    """The items, one per line, grouped under the names of their namespaces; items without a namespace come first."""
    names = sorted(dict.fromkeys(item.namespace for item in items), key=bool)
    if not any(names):
        return bullet_list([render_item(item) for item in items])
    blocks = []
    for name in names:
        lines = bullet_list([render_item(item) for item in items if item.namespace == name])
        blocks.append(f"Memories of {name}:\n{lines}" if name else lines)
    return "\n\n".join(blocks)
