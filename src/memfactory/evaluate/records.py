"""One record a sample, append-only on disk, under a fingerprint of all that the samples depend on.

It does not know how attempts are played or scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from memfactory.errors import ConfigError, DataError
from memfactory.files import JsonLinesWriter, read_json_lines
from memfactory.types import Episode, Reply, Stop, Task, Turn

Fingerprint = Mapping[str, str | None]
"""What a file's samples depend on, by name; None: does not apply (no judge was used)."""


@dataclass(frozen=True)
class TurnRecord:
    """One conversation of an attempt, its prompt left out. Token counts are None where the engine gives no ids."""

    step: str
    text: str
    stop: Stop
    prompt_tokens: int | None
    reply_tokens: int | None


@dataclass(frozen=True)
class SampleRecord:
    """One attempt at one question. A metric that is not in `scores` was never asked for; None: unknown."""

    dataset: str
    task_id: str
    sample: int
    question: str
    answers: tuple[str, ...]
    answer: str | None
    memory: str
    scores: Mapping[str, float | None]
    turns: tuple[TurnRecord, ...]

    def to_json(self) -> dict[str, object]:
        return {**vars(self), "scores": dict(self.scores), "turns": [asdict(turn) for turn in self.turns]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> SampleRecord:
        """What `to_json` wrote. Raises DataError for anything else."""
        try:
            turns = tuple(TurnRecord(**turn) for turn in value["turns"])
            return SampleRecord(**{**value, "answers": tuple(value["answers"]), "turns": turns})
        except (KeyError, TypeError) as error:
            raise DataError(f"{str(value)[:80]} is no record of a sample: {error}") from None

    def episode(self, task: Task) -> Episode:
        """The finished attempt again, as far as scoring it needs."""
        turns = [Turn(turn.step, (), Reply(turn.text, turn.stop), False) for turn in self.turns]
        return Episode(task, member=self.sample, memory=self.memory, turns=turns, answer=self.answer)


def record(dataset: str, episode: Episode, scores: Mapping[str, float | None]) -> SampleRecord:
    """The record of a finished attempt."""
    task = episode.task
    return SampleRecord(
        dataset=dataset,
        task_id=task.id,
        sample=episode.member,
        question=task.question,
        answers=task.answers,
        answer=episode.answer,
        memory=episode.memory,
        scores=dict(scores),
        turns=tuple(map(turn_record, episode.turns)),
    )


def turn_record(turn: Turn) -> TurnRecord:
    """The record of one conversation."""
    tokens = turn.reply.tokens
    return TurnRecord(
        step=turn.step,
        text=turn.reply.text,
        stop=turn.reply.stop,
        prompt_tokens=None if tokens is None else len(tokens.prompt_ids),
        reply_tokens=None if tokens is None else len(tokens.reply_ids),
    )


class RecordFile:
    """A dataset's records: what is there already, and where new ones go.

    The first line holds the fingerprint. A fingerprint entry that was None and now has a value (a judge joins in) is
    written as a further such line; any other difference is a ConfigError that names both ways out. A record for a
    sample that has one replaces it.
    """

    def __init__(
        self, path: Path, dataset: str, fingerprint: Fingerprint | None = None, *, overwrite: bool = False
    ) -> None:
        self.path = path
        self.dataset = dataset
        self._records: dict[tuple[str, int], SampleRecord] = {}
        if overwrite:
            path.unlink(missing_ok=True)
        held = self._read() if path.exists() else None
        if held is not None:
            self._refuse_if_different(held, fingerprint or {})
        given = {name: value for name, value in (fingerprint or {}).items() if value is not None}
        merged = {**(held or {}), **given}
        self._writer = JsonLinesWriter(path)
        if merged and merged != held:
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

    def _read(self) -> dict[str, str | None] | None:
        held: dict[str, str | None] | None = None
        for value in read_json_lines(self.path):
            if "fingerprint" in value:
                held = dict(value["fingerprint"])  # type: ignore[call-overload]
            else:
                found = SampleRecord.from_json(value)
                self._records[found.task_id, found.sample] = found
        return held

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
    found: dict[tuple[str, int], SampleRecord] = {}
    for value in read_json_lines(path):
        if "fingerprint" not in value:
            new = SampleRecord.from_json(value)
            found[new.task_id, new.sample] = new
    return list(found.values())
