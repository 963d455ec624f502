"""The module `answer`: Memory-R1's answer agent, which first names the memories that help (arXiv 2508.19828)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from memfactory.dialogue import Asking, Module, ModuleOptions
from memfactory.registry import MODULES
from memfactory.types import Episode

ANSWER_PROMPT = """\
Answer the question from the memories. First copy those that help, each on a line that begins with "- ". Then write
**Answer:** and the answer in as few words as possible. Where memories contradict each other, the latest counts.

<memory>
{memory}
</memory>

<question>
{question}
</question>"""


class AnswerOptions(ModuleOptions):
    """Options of `answer`."""

    prompt: str = ANSWER_PROMPT
    """The wording; {memory} and {question} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    distill: bool = True
    """Whether the memories that help are copied before the answer (the default prompt asks for it)."""


@MODULES.register("answer")
class AnswerModule(Module):
    """Answers from the retrieved memories, after copying those that help."""

    Options: ClassVar[type[AnswerOptions]] = AnswerOptions
    options: AnswerOptions
    steps = ("answer",)

    def dialogue(self, episode: Episode) -> Asking:
        raise NotImplementedError
        yield
