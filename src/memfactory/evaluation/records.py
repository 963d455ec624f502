"""One record a sample, append-only on disk, under a fingerprint of all that the samples depend on.

It does not know how attempts are played or scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from memfactory.episode import Episode
from memfactory.errors import ConfigError, DataError
from memfactory.files.json_lines import JsonLinesWriter, read_json_lines
from memfactory.memory.bank import BankSource, MemoryBank
from memfactory.types import AnswerForm, MemoryItem, Reading, Reply, Stop, Task, Turn, item_json

Fingerprint = Mapping[str, str | None]
"""What a file's samples depend on, by name; None: does not apply (no judge was used)."""
Place = tuple[str, int]
"""A task's id and the number of the attempt at it."""
RULE = "rule of "
"""What begins a fingerprint's entry on the rule by which a metric is scored; its name follows."""
WHOLE_ITEMS = 100
"""Retrieved items that are recorded with their texts; of any further ones (a whole conversation) only the sources."""


@dataclass(frozen=True)
class TurnRecord:
    """One conversation of an attempt, its prompt left out. Token counts are None where the engine gives no ids."""

    step: str
    text: str
    stop: Stop
    prompt_tokens: int | None
    reply_tokens: int | None


@dataclass(frozen=True)
class BankRecord:
    """What rewards read of a memory bank at the end of an attempt: how many items and words it holds, and which of
    the task's evidence its items come from. A bank of a thousand items is not written down with every question."""

    items: int
    words: int
    evidence: tuple[str, ...]

    def bank(self) -> MemoryBank:
        """A bank of which the rewards of this package see the same: its first item stands for all texts."""
        first = MemoryItem("m1", "", " ".join(["-"] * self.words), sources=self.evidence)
        others = [MemoryItem(f"m{number}", "", "") for number in range(2, self.items + 1)]
        return BankSource().open([first, *others][: self.items])


@dataclass(frozen=True)
class SampleRecord:
    """One attempt at one question. A metric that is not in `scores` was never asked for; None: unknown.

    `answer_text` is the reply that the answer was taken from, where it is more than the answer. `memory` is that of a
    recurrent agent; `bank` says what is kept of a memory bank. An attempt with a `failure` could
    not be played to its end: its scores are unknown, and it is to be played again. What follows `turns` is written only
    where there is any: `tokens_read` and `tokens_dropped` say how much of its text it was shown (None: its modules do
    not say).
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

    def to_json(self) -> dict[str, object]:
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
        }
        plain = {name: value for name, value in values.items() if name not in optional}
        return plain | {name: value for name, value in optional.items() if value not in (None, [], {})}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> SampleRecord:
        """What `to_json` wrote. Raises DataError for anything else."""
        try:
            turns = tuple(TurnRecord(**turn) for turn in value["turns"])
            citations, bank = value.get("citations"), value.get("bank")
            of_banks = {
                "retrieved": tuple(map(_item, value.get("retrieved", ()))),
                "citations": None if citations is None else tuple(citations),
                "checks": {step: tuple(marks) for step, marks in value.get("checks", {}).items()},
                "bank": None if bank is None else BankRecord(**{**bank, "evidence": tuple(bank["evidence"])}),
            }
            return SampleRecord(**{**value, "answers": tuple(value["answers"]), "turns": turns, **of_banks})
        except (KeyError, TypeError) as error:
            raise DataError(f"{str(value)[:80]} is no record of a sample: {error}") from None

    @property
    def reading(self) -> Reading | None:
        """How much of its text it was shown."""
        return None if self.tokens_read is None else Reading(self.tokens_read, self.tokens_dropped or 0)

    def episode(self, task: Task) -> Episode:
        """The finished attempt again, as far as scoring it needs."""
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
    """The record of a finished attempt."""
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
    )


def _bank_record(bank: MemoryBank, task: Task) -> BankRecord:
    items = bank.list()
    sources = {source for item in items for source in item.sources}
    words = sum(len(item.text.split()) for item in items)
    return BankRecord(len(items), words, tuple(id for id in task.evidence if id in sources))


def reading_json(reading: Reading | None) -> dict[str, int | None]:
    """How much of a text was read, as every kind of record has it."""
    read, dropped = (None, None) if reading is None else (reading.read, reading.dropped)
    return {"tokens_read": read, "tokens_dropped": dropped}


def _item(value: Mapping[str, Any]) -> MemoryItem:
    """What `item_json` wrote."""
    lists = {name: tuple(value[name]) for name in ("tags", "sources") if name in value}
    return MemoryItem(**{"id": "", "key": "", "value": "", **value, **lists})


def turn_record(turn: Turn) -> TurnRecord:
    """The record of one conversation."""
    prompt_tokens, reply_tokens = turn.lengths or (None, None)
    return TurnRecord(turn.step, turn.reply.text, turn.reply.stop, prompt_tokens, reply_tokens)


class RecordFile:
    """A dataset's records: what is there already, and where new ones go.

    The first line holds the fingerprint. A fingerprint entry that was None and now has a value (a judge joins in) is
    written as a further such line, and so is by which rule a metric is scored; any other difference is a ConfigError
    that names both ways out. A record for a sample that has one replaces it.
    """

    def __init__(
        self, path: Path, dataset: str, fingerprint: Fingerprint | None = None, *, overwrite: bool = False
    ) -> None:
        self.path = path
        self.dataset = dataset
        self._records: dict[Place, SampleRecord] = {}
        if overwrite:
            path.unlink(missing_ok=True)
        held: dict[str, str | None] | None = None
        if path.exists():
            self._records, held = _read(path)
        if held is not None:
            self._refuse_if_different(held, fingerprint or {})
        given = {name: value for name, value in (fingerprint or {}).items() if value is not None}
        merged = {**(held or {}), **given}
        self._fingerprint: dict[str, str | None] = merged
        self._writer = JsonLinesWriter(path)
        if merged and merged != held:
            self._writer.append({"fingerprint": merged})

    def score_by(self, rules: Mapping[str, str]) -> None:
        """Forget the scores of metrics that were not given by these rules (a metric's name to what names its rule).

        The line that says so forgets those before it whenever the file is read again: not all of them need be given
        anew now.
        """
        merged = {**self._fingerprint, **{f"{RULE}{metric}": rule for metric, rule in rules.items()}}
        stale = _rescored(self._fingerprint, merged)
        if stale:
            self._records = _without_scores(self._records, stale)
            self._fingerprint = merged
            self._writer.append({"fingerprint": merged})

    def get(self, task_id: str, sample: int) -> SampleRecord | None:
        return self._records.get((task_id, sample))

    def add(self, new: SampleRecord) -> None:
        self._records[new.task_id, new.sample] = new
        self._writer.append(new.to_json())

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_if_different(self, held: Fingerprint, given: Fingerprint) -> None:
        differing = [
            f"{name} was {held[name]}, now {value}"
            for name, value in given.items()
            if value is not None and held.get(name) is not None and held[name] != value
        ]
        if differing:
            raise ConfigError(
                f"{self.path} holds samples of another evaluation ({'; '.join(differing)}). "
                "Choose another --output, or replace them with --overwrite."
            )


def read_records(path: Path) -> Sequence[SampleRecord]:
    """The records of a samples file, the newest of each sample, in the order they were first written."""
    return list(_read(path)[0].values())


def _read(path: Path) -> tuple[dict[Place, SampleRecord], dict[str, str | None] | None]:
    """The newest record of each sample, with the scores of the rules that count, and the fingerprint if any."""
    records: dict[Place, SampleRecord] = {}
    held: dict[str, str | None] | None = None
    for value in read_json_lines(path):
        if "fingerprint" in value:
            before, held = held or {}, dict(value["fingerprint"])  # type: ignore[call-overload]
            records = _without_scores(records, _rescored(before, held))
        else:
            new = SampleRecord.from_json(value)
            records[new.task_id, new.sample] = new
    return records, held


def _rescored(before: Fingerprint, after: Fingerprint) -> set[str]:
    """The metrics that are scored by another rule under `after` than under `before`, or by an unknown one there."""
    return {name.removeprefix(RULE) for name in after if name.startswith(RULE) and before.get(name) != after[name]}


def _without_scores(records: Mapping[Place, SampleRecord], metrics: set[str]) -> dict[Place, SampleRecord]:
    """`records` without their scores by `metrics`."""
    if not metrics:
        return dict(records)
    return {
        place: replace(held, scores={name: score for name, score in held.scores.items() if name not in metrics})
        for place, held in records.items()
    }
