"""The record of a sample: the turns, the answer, the memory and the scores of one finished episode.

This module knows nothing about playing or scoring episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from memfactory.episode import Episode
from memfactory.errors import DataError
from memfactory.memory.bank import BankSource, MemoryBank
from memfactory.text import is_unfinished_thinking
from memfactory.types import AnswerForm, MemoryItem, Reading, Reply, Stop, Task, Turn, item_json

WHOLE_ITEMS = 100
"""The most retrieved items that a record holds with texts; of further items (a whole conversation) it holds sources."""


@dataclass(frozen=True)
class TurnRecord:
    """One turn of an episode without its prompt. Token counts are None if the engine reports no ids."""

    step: str
    text: str
    stop: Stop
    prompt_tokens: int | None
    reply_tokens: int | None


@dataclass(frozen=True)
class BankRecord:
    """The size of a memory bank at the end of an episode, and the task's evidence among the sources of its items.

    Rewards read no more than this, so that a bank of a thousand items need not be recorded with every question.
    """

    items: int
    words: int
    evidence: tuple[str, ...]

    def bank(self) -> MemoryBank:
        """A bank with the same rewards as the recorded one: its first item holds the words and sources of all."""
        first = MemoryItem("m1", "", " ".join(["-"] * self.words), sources=self.evidence)
        others = [MemoryItem(f"m{number}", "", "") for number in range(2, self.items + 1)]
        return BankSource().open([first, *others][: self.items])


@dataclass(frozen=True)
class SampleRecord:
    """One sample of one question. A metric outside of `scores` was never requested; None: unknown.

    `answer_text` is the reply that holds the answer, if it holds more. `memory` is a recurrent agent's text; `bank`
    describes a memory bank. A sample with a `failure` did not reach its end: its scores are unknown, and the next
    evaluation plays it again. `tokens_read` and `tokens_dropped` count the tokens of the text that the agent read and
    left out (None: its modules do not count them). `unfinished_thinking` counts the turns whose thinking never ended
    (None: no turn thinks). The file omits empty values after `turns`.
    """

    dataset: str
    task_id: str
    sample: int
    question: str
    answers: tuple[str, ...]
    answer: str | None
    memory: str
    scores: Mapping[str, float | None]
    turns: tuple[TurnRecord, ...]
    tokens_read: int | None = None
    tokens_dropped: int | None = None
    retrieved: tuple[MemoryItem, ...] = ()
    citations: tuple[str, ...] | None = None
    checks: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: MappingProxyType({}))
    bank: BankRecord | None = None
    failure: str | None = None
    answer_text: str | None = None
    answer_form: AnswerForm | None = None
    unfinished_thinking: int | None = None

    def to_json(self) -> dict[str, object]:
        """The record as one JSON object."""
        values = {**vars(self), "scores": dict(self.scores), "turns": [asdict(turn) for turn in self.turns]}
        optional = {
            "tokens_read": self.tokens_read,
            "tokens_dropped": self.tokens_dropped,
            "retrieved": [item_json(item) for item in self.retrieved],
            "citations": self.citations,
            "checks": dict(self.checks),
            "bank": None if self.bank is None else asdict(self.bank),
            "failure": self.failure,
            "answer_text": self.answer_text,
            "answer_form": self.answer_form,
            "unfinished_thinking": self.unfinished_thinking,
        }
        plain = {name: value for name, value in values.items() if name not in optional}
        return plain | {name: value for name, value in optional.items() if value not in (None, [], {})}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> SampleRecord:
        """The inverse of `to_json`. Raises DataError for a value of another shape."""
        try:
            turns = tuple(TurnRecord(**turn) for turn in value["turns"])
            citations, bank = value.get("citations"), value.get("bank")
            converted = {
                "retrieved": tuple(map(_item, value.get("retrieved", ()))),
                "citations": None if citations is None else tuple(citations),
                "checks": {step: tuple(marks) for step, marks in value.get("checks", {}).items()},
                "bank": None if bank is None else BankRecord(**{**bank, "evidence": tuple(bank["evidence"])}),
            }
            return SampleRecord(**{**value, "answers": tuple(value["answers"]), "turns": turns, **converted})
        except (KeyError, TypeError) as error:
            raise DataError(f"{str(value)[:80]} is not the record of a sample: {error}") from None

    @property
    def reading(self) -> Reading | None:
        """The tokens that the agent read and left out."""
        return None if self.tokens_read is None else Reading(self.tokens_read, self.tokens_dropped or 0)

    def episode(self, task: Task) -> Episode:
        """The finished episode, as far as scores depend on it."""
        turns = [Turn(turn.step, (), Reply(turn.text, turn.stop), False) for turn in self.turns]
        return Episode(
            task,
            index=self.sample,
            memory=self.memory,
            turns=turns,
            answer=self.answer,
            bank=None if self.bank is None else self.bank.bank(),
            retrieved=self.retrieved,
            citations=self.citations,
            checks={step: list(marks) for step, marks in self.checks.items()},
            failure=self.failure,
            reading=self.reading,
            answer_text=self.answer if self.answer_text is None else self.answer_text,
            answer_form=self.answer_form,
        )


def record(dataset: str, episode: Episode, scores: Mapping[str, float | None]) -> SampleRecord:
    """The record of a finished episode."""
    task = episode.task
    return SampleRecord(
        dataset=dataset,
        task_id=task.id,
        sample=episode.index,
        question=task.question,
        answers=task.answers,
        answer=episode.answer,
        memory=episode.memory if episode.bank is None else "",
        scores=dict(scores),
        turns=tuple(map(turn_record, episode.turns)),
        **reading_json(episode.reading),
        retrieved=(
            *episode.retrieved[:WHOLE_ITEMS],
            *(replace(item, key="", value="") for item in episode.retrieved[WHOLE_ITEMS:]),
        ),
        citations=episode.citations,
        checks={step: tuple(marks) for step, marks in episode.checks.items()},
        bank=None if episode.bank is None else _bank_record(episode.bank, task),
        failure=episode.failure,
        answer_text=None if episode.answer_text == episode.answer else episode.answer_text,
        answer_form=episode.answer_form,
        unfinished_thinking=unfinished_turns(episode.turns),
    )


def unfinished_turns(turns: Sequence[Turn]) -> int | None:
    """The number of turns whose thinking never ended; None if no turn thinks."""
    states = [state for turn in turns if (state := is_unfinished_thinking(turn.reply.text)) is not None]
    return sum(states) if states else None


def _bank_record(bank: MemoryBank, task: Task) -> BankRecord:
    items = bank.list()
    sources = {source for item in items for source in item.sources}
    words = sum(len(item.text.split()) for item in items)
    return BankRecord(len(items), words, tuple(id for id in task.evidence if id in sources))


def reading_json(reading: Reading | None) -> dict[str, int | None]:
    """The tokens read and left out, as every kind of record holds them."""
    read, dropped = (None, None) if reading is None else (reading.read, reading.dropped)
    return {"tokens_read": read, "tokens_dropped": dropped}


def _item(value: Mapping[str, Any]) -> MemoryItem:
    """The inverse of `item_json`."""
    lists = {name: tuple(value[name]) for name in ("tags", "sources") if name in value}
    return MemoryItem(**{"id": "", "key": "", "value": "", **value, **lists})


def turn_record(turn: Turn) -> TurnRecord:
    """The record of one turn."""
    prompt_tokens, reply_tokens = turn.lengths or (None, None)
    return TurnRecord(turn.step, turn.reply.text, turn.reply.stop, prompt_tokens, reply_tokens)
