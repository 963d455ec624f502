"""The module `citing_answer`: an answer that names the memories it rests on, as RMM's (arXiv 2503.08026)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from memfactory.dialogue import Asking, Module, ModuleOptions
from memfactory.registry import MODULES
from memfactory.types import Episode

CITING_PROMPT = """\
Answer the question from the memories in as few words as possible. Then give the numbers of the memories that you used,
such as [0, 2], or [NO_CITE] if none helps.

<memory>
{memory}
</memory>

<question>
{question}
</question>"""


class CitingAnswerOptions(ModuleOptions):
    """Options of `citing_answer`."""

    prompt: str = CITING_PROMPT
    """The wording; {memory} and {question} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""


@MODULES.register("citing_answer")
class CitingAnswer(Module):
    """Answers from the retrieved memories and cites those that it used."""

    Options: ClassVar[type[CitingAnswerOptions]] = CitingAnswerOptions
    options: CitingAnswerOptions
    steps = ("answer",)

    def dialogue(self, episode: Episode) -> Asking:
        raise NotImplementedError
        yield
