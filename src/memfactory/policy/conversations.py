"""The conversations of a supervised run: read, checked and counted before any weights are loaded.

Rows of files are checked up front, sampled or not. Rows that a program generates are checked as they are generated.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memfactory.config.datasets import dataset_values
from memfactory.config.schema import Component, DataConfig
from memfactory.config.sft import SftOptions, SftStage
from memfactory.data.base import Dataset, GeneratedRows, Row
from memfactory.errors import ConfigError, DataError
from memfactory.model.loading import load_architecture, load_chat
from memfactory.model.options import ModelConfig
from memfactory.plugins.boundary import made
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.supervised import Encoder, Longest
from memfactory.registry import DATASETS

log = logging.getLogger("memfactory")
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Stage:
    """A stage of the curriculum: optimizer steps `first` to `last` on `rows`, at `learning_rate`.

    With `skip_bad_rows` a generated row that cannot be used trains nothing instead of stopping the run.
    """

    first: int
    last: int
    rows: Sequence[Row]
    learning_rate: float
    skip_bad_rows: bool = False

    @property
    def steps(self) -> int:
        """The module steps in the stage."""
        return self.last - self.first + 1

    def turns(self, encoder: Encoder, row: Row, number: int) -> list[TrainingTurn]:
        """The turns to train on in `row`. Raises DataError if it cannot be used."""
        try:
            return encoder.turns(row, number)
        except DataError:
            if not self.skip_bad_rows:
                raise
            return []


@dataclass(frozen=True)
class Conversations:
    """The stages of a run in order, the encoder of their rows, and the tokens of the longest conversation checked."""

    stages: tuple[Stage, ...]
    encoder: Encoder
    longest: int
    shuffle: bool = True

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.stages[-1].last


def read_conversations(model: ModelConfig, data: DataConfig, base_dir: Path, options: SftOptions) -> Conversations:
    """Read the conversations of every stage; without stages, those of `data.train`.

    Warnings count rows left out or cut. Raises ConfigError without any data, DataError that names the rows that cannot
    be used.
    """
    encoder = Encoder(load_chat(model), longest_of(model, options), options.overlong)
    stages: list[Stage] = []
    longest = 0
    for stage, component in _configured(options, data.train, base_dir):
        dataset: Dataset = made(DATASETS, component.name, component.options, base_dir)
        rows, tokens = _checked(dataset, encoder)
        longest = max(longest, tokens)
        first = stages[-1].last + 1 if stages else 1
        last = first + _steps(stage, len(rows), options.batch_size) - 1
        rate = stage.learning_rate or options.optimizer.learning_rate
        stages.append(Stage(first, last, rows, rate, dataset.options.skip_bad_rows))
    if encoder.counts.rewritten:
        log.warning(
            "the chat template renders a whole conversation differently from a prompt followed by its reply (the "
            "first: %s); replies are learnt as they follow a prompt",
            encoder.counts.rewritten,
        )
    return Conversations(tuple(stages), encoder, longest, data.shuffle)


def longest_of(model: ModelConfig, options: SftOptions) -> Longest | None:
    """The longest conversation to train on: the model's positions or `train.max_tokens`, whichever is less."""
    architecture = load_architecture(model).get_text_config()
    positions = getattr(architecture, "max_position_embeddings", None)
    limits = [] if positions is None else [Longest(positions, f"the model has {positions:,} positions")]
    if options.max_tokens is not None:
        limits.append(Longest(options.max_tokens, f"train.max_tokens is {options.max_tokens:,}"))
    return min(limits, key=lambda limit: limit.tokens, default=None)


def _configured(options: SftOptions, data: Component | None, base_dir: Path) -> list[tuple[SftStage, Component]]:
    if options.stages:
        return [(stage, _component(stage.data, base_dir)) for stage in options.stages]
    if data is None:
        raise ConfigError("data.train: SFT needs conversations, but neither data.train nor train.stages names any")
    steps = options.steps or None
    return [(SftStage(steps=steps, epochs=None if steps else options.epochs or 1, data=data.name), data)]


def _component(spec: str | dict[str, object], base_dir: Path) -> Component:
    values = dataset_values(spec, base_dir)
    name = values.pop("name")
    return Component(name, DATASETS.options(name).model_validate(values))


def _steps(stage: SftStage, rows: int, batch_size: int) -> int:
    return stage.steps or max(1, math.ceil((stage.epochs or 1) * rows / batch_size))


def _checked(dataset: Dataset, encoder: Encoder) -> tuple[Sequence[Row], int]:
    """The rows that can be used, and the tokens of the longest conversation among them."""
    rows = dataset.checked_rows()
    if not rows:
        raise DataError(f"{dataset.source} has no conversations to train on")
    generated = isinstance(rows, GeneratedRows)
    checked = _held(rows)
    before = encoder.counts.dropped, encoder.counts.cut
    usable: list[Row] = []
    problems: list[str] = []
    longest = 0
    for row in checked:
        try:
            turns = encoder.turns(row, 0)
        except DataError as error:
            problems.append(str(error))
            if not dataset.options.skip_bad_rows and len(problems) >= SHOWN_PROBLEMS:
                break
            continue
        if turns:
            usable.append(row)
            longest = max(longest, *(turn.length for turn in turns))
    if problems and not dataset.options.skip_bad_rows:
        raise DataError("\n".join([*problems, "skip_bad_rows: true leaves such rows out."]))
    _warn(dataset, encoder, len(checked), problems, before)
    if not usable and not generated:
        raise DataError(f"{dataset.source} has no conversation to train on: all {len(rows)} are left out")
    return (rows if generated else usable), longest


def _held(rows: Sequence[Row]) -> list[Row]:
    """The rows of files among `rows`, including those that generated rows are mixed from."""
    return [row for part in rows.mixed for row in _held(part)] if isinstance(rows, GeneratedRows) else list(rows)


def _warn(dataset: Dataset, encoder: Encoder, count: int, problems: Sequence[str], before: tuple[int, int]) -> None:
    """Warn of conversations that are left out or cut, of `count` in all."""
    if problems:
        log.warning(
            "%d of %d rows of %s were left out; the first: %s", len(problems), count, dataset.source, problems[0]
        )
    dropped, cut = encoder.counts.dropped - before[0], encoder.counts.cut - before[1]
    why = encoder.longest.why if encoder.longest else ""
    if dropped:
        log.warning("%d of %d conversations of %s are too long (%s) and left out", dropped, count, dataset.source, why)
    if cut:
        log.warning("%d of %d conversations of %s are too long (%s) and cut", cut, count, dataset.source, why)
