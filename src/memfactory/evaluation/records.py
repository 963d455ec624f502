"""One record per sample in an append-only file, under the fingerprint of everything the samples depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from memfactory.errors import ConfigError
from memfactory.evaluation.samples import SampleRecord
from memfactory.files.json_lines import JsonLinesWriter, read_json_lines

Fingerprint = Mapping[str, str | None]
"""The digests of a file's samples by name; None: does not apply (no judge scored them)."""
Place = tuple[str, int]
"""A task's id and the index of a sample."""
RULE = "rule of "
"""The prefix of a fingerprint's entry for a metric's scoring rule; the metric's name follows."""


class RecordFile:
    """The records of a dataset: reads those in the file and appends new ones.

    The first line holds the fingerprint. A further such line adds an entry that was None before (a judge joins in), or
    the rule by which a metric is scored; any other difference is a ConfigError that names both ways out. The newest
    record of a sample counts.
    """

    def __init__(
        self, path: Path, dataset: str, fingerprint: Fingerprint | None = None, *, overwrite: bool = False
    ) -> None:
        self.path = path
        self.dataset = dataset
        self._records: dict[Place, SampleRecord] = {}
        if overwrite:
            path.unlink(missing_ok=True)
        recorded: dict[str, str | None] | None = None
        if path.exists():
            self._records, recorded = _read(path)
        if recorded is not None:
            self._refuse_if_different(recorded, fingerprint or {})
        present = {name: value for name, value in (fingerprint or {}).items() if value is not None}
        merged = {**(recorded or {}), **present}
        self._fingerprint: dict[str, str | None] = merged
        self._writer = JsonLinesWriter(path)
        if merged and merged != recorded:
            self._writer.append({"fingerprint": merged})

    def score_by(self, rules: Mapping[str, str]) -> None:
        """Forget the scores of metrics that follow other rules than these (a digest by metric).

        A line in the file records this, so that every later reader forgets them too: not all samples need be scored
        again now.
        """
        merged = {**self._fingerprint, **{f"{RULE}{metric}": rule for metric, rule in rules.items()}}
        stale = _rescored(self._fingerprint, merged)
        if stale:
            self._records = _without_scores(self._records, stale)
            self._fingerprint = merged
            self._writer.append({"fingerprint": merged})

    def get(self, task_id: str, sample: int) -> SampleRecord | None:
        """The record of a sample; None if there is none."""
        return self._records.get((task_id, sample))

    def add(self, new: SampleRecord) -> None:
        """Append a record; it replaces an earlier one of the same task and sample."""
        self._records[new.task_id, new.sample] = new
        self._writer.append(new.to_json())

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_if_different(self, recorded: Fingerprint, current: Fingerprint) -> None:
        differing = [
            f"{name} was {recorded[name]}, now {value}"
            for name, value in current.items()
            if value is not None and recorded.get(name) is not None and recorded[name] != value
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
    """The newest record of each sample, with the scores of the newest rules, and the fingerprint if any."""
    records: dict[Place, SampleRecord] = {}
    fingerprint: dict[str, str | None] | None = None
    for value in read_json_lines(path):
        if "fingerprint" in value:
            before, fingerprint = fingerprint or {}, dict(value["fingerprint"])  # type: ignore[call-overload]
            records = _without_scores(records, _rescored(before, fingerprint))
        else:
            new = SampleRecord.from_json(value)
            records[new.task_id, new.sample] = new
    return records, fingerprint


def _rescored(before: Fingerprint, after: Fingerprint) -> set[str]:
    """The metrics whose rule in `after` is not their rule in `before`, or was unknown there."""
    return {name.removeprefix(RULE) for name in after if name.startswith(RULE) and before.get(name) != after[name]}


def _without_scores(records: Mapping[Place, SampleRecord], metrics: set[str]) -> dict[Place, SampleRecord]:
    """`records` without their scores by `metrics`."""
    if not metrics:
        return dict(records)
    return {
        place: replace(sample, scores={name: score for name, score in sample.scores.items() if name not in metrics})
        for place, sample in records.items()
    }
