"""The module `citing_answer`: an answer that names the memories it rests on, as RMM's (arXiv 2503.08026)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from memfactory.dialogue import Ask, Asking
from memfactory.episode import Episode
from memfactory.formats.render import bracketed_list, render_conversation, render_item
from memfactory.registry import MODULES
from memfactory.roles import Answerer, AnswerModuleOptions, ParsedAnswer
from memfactory.text import after_thinking, fill, listed_numbers
from memfactory.types import MemoryItem, Message, Utterance

NO_CITE = "NO_CITE"
CITING_PROMPT = """\
Answer the question from the memories in as few words as possible. Then give the numbers of the memories that you used,
such as [0, 2], or [NO_CITE] if none helps.

<memory>
{memory}
</memory>

<question>
{question}
</question>"""


class CitingAnswerOptions(AnswerModuleOptions):
    """Options of `citing_answer`."""

    prompt: str = CITING_PROMPT
    """The wording; {memory} and {question} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    sources: bool = False
    """Whether each memory is followed by what was said word for word where it comes from, as in RMM."""

    @property
    def answer_prompt(self) -> str:
        return self.prompt


@dataclass(frozen=True)
class Cited:
    """What a reply says. `numbers` are the memories that it cites (None: no or a malformed citation), `form` is how
    well it kept to the format: 1, the share of usable entries of a citation that had to be mended, or 0."""

    answer: str | None
    numbers: tuple[int, ...] | None
    form: float


def parse_cited(text: str, shown: int) -> Cited:
    """The answer, and the numbers from 0 to `shown` - 1 in the `[...]` at the end of it (`[NO_CITE]`: none).

    Numbers that are not there or come twice are left out. A citation without an answer cites nothing.
    """
    said = (after_thinking(text) or "").strip()
    found = re.search(r"\[([^\[\]]*)\]\.?$", said)
    answer = (said[: found.start()] if found else said).strip() or None
    if found is None or answer is None:
        return Cited(answer, None, 0.0)
    if found.group(1).strip() == NO_CITE:
        return Cited(answer, (), 1.0)
    numbers, entries = listed_numbers(found.group(1), range(shown))
    return Cited(answer, numbers, len(numbers) / entries) if numbers else Cited(answer, None, 0.0)


@MODULES.register("citing_answer")
class CitingAnswer(Answerer[CitingAnswerOptions]):
    """Answers from the retrieved memories and cites those that it used."""

    steps = ("answer",)

    def dialogue(self, episode: Episode, items: Sequence[MemoryItem]) -> Asking[ParsedAnswer]:
        options = self.options
        lines = [render_item(item) for item in items]
        if options.sources:
            lines = with_sources(items, episode.task.conversation)
        values = {"memory": bracketed_list(lines), "question": episode.task.question}
        reply = yield Ask("answer", (Message("user", fill(options.prompt, values)),), options.max_tokens)
        cited = parse_cited(reply.text, len(items))
        episode.check("answer", cited.form)
        citations = None if cited.numbers is None else [items[number].id for number in cited.numbers]
        return self.answer(cited.answer, citations)


def with_sources(items: Sequence[MemoryItem], conversation: Sequence[Utterance]) -> list[str]:
    """Each item in one line, and below it those utterances of `conversation` that it comes from."""
    said = {turn.id: turn for turn in conversation if turn.id}
    return ["\n".join([render_item(item), *_quoted(item, said)]) for item in items]


def _quoted(item: MemoryItem, said: dict[str, Utterance]) -> list[str]:
    turns = [said[source] for source in item.sources if source in said]
    return [f"    {line}" for line in render_conversation(turns).splitlines()]
