"""The module `citing_answer`: an answer that cites the memories that it uses, as RMM's (arXiv 2503.08026)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

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


SHORT_PROMPT = """\
{memory}

Question: {question}
Answer in a few words, then the number of the memory in brackets, such as: Oslo [0]
Answer:"""


class CitingAnswerOptions(AnswerModuleOptions):
    """Options of `citing_answer`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"short": {"prompt": SHORT_PROMPT}})

    prompt: str = CITING_PROMPT
    """The prompt; {memory} and {question} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    sources: bool = False
    """Whether each memory is followed by the utterances that it comes from, word for word, as in RMM."""

    @property
    def answer_prompt(self) -> str:
        return self.prompt


@dataclass(frozen=True)
class Cited:
    """The answer and the citation of a reply. `numbers` are the cited memories (None: no or a malformed citation).
    `form` is 1 for a well-formed citation, the fraction of usable entries for a repaired one, else 0."""

    answer: str | None
    numbers: tuple[int, ...] | None
    form: float


def parse_cited(text: str, shown: int) -> Cited:
    """The answer, and the numbers from 0 to `shown` - 1 in the `[...]` at the end of it (`[NO_CITE]`: none).

    Unknown and repeated numbers are left out. A citation without an answer cites nothing.
    """
    reply = (after_thinking(text) or "").strip()
    citation = re.search(r"\[([^\[\]]*)\]\.?$", reply)
    answer = (reply[: citation.start()] if citation else reply).strip() or None
    if citation is None or answer is None:
        return Cited(answer, None, 0.0)
    if citation.group(1).strip() == NO_CITE:
        return Cited(answer, (), 1.0)
    numbers, entries = listed_numbers(citation.group(1), range(shown))
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
    """Each item in one line, and below it the utterances of `conversation` that it comes from."""
    by_id = {turn.id: turn for turn in conversation if turn.id}
    return ["\n".join([render_item(item), *_sources(item, by_id)]) for item in items]


def _sources(item: MemoryItem, by_id: dict[str, Utterance]) -> list[str]:
    turns = [by_id[source] for source in item.sources if source in by_id]
    return [f"    {line}" for line in render_conversation(turns).splitlines()]
