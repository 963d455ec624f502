"""The conversations of a supervised run: read, checked and counted before any weight is loaded.

A row of a file is checked whether it will be drawn or not. Rows that a program generates are checked as they are drawn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memfactory.config import Resolved
from memfactory.config.datasets import dataset_values
from memfactory.config.schema import Component
from memfactory.config.training import SftOptions, SftStage
from memfactory.data.base import Dataset, GeneratedRows, Row
from memfactory.errors import ConfigError, DataError, MemFactoryError
from memfactory.model.loading import load_architecture, load_chat
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.supervised import Encoder, Longest
from memfactory.registry import DATASETS

log = logging.getLogger("memfactory")
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Part:
    """A stage as it is trained: optimizer steps `first` to `last` on `rows`, at `learning_rate`.

    With `skip_bad_rows` a generated row that cannot be used trains nothing instead of stopping the run.
    """

    first: int
    last: int
    rows: Sequence[Row]
    learning_rate: float
    skip_bad_rows: bool = False

    @property
    def steps(self) -> int:
        return self.last - self.first + 1

    def turns(self, encoder: Encoder, row: Row, number: int) -> list[TrainingTurn]:
        """What is learnt of `row`. Raises DataError where it cannot be used."""
        try:
            return encoder.turns(row, number)
        except DataError:
            if not self.skip_bad_rows:
                raise
            return []


@dataclass(frozen=True)
class Conversations:
    """The stages of a run in order, what encodes their rows, and the longest conversation of those looked at."""

    parts: tuple[Part, ...]
    encoder: Encoder
    longest: int

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.parts[-1].last


def read_conversations(resolved: Resolved, options: SftOptions) -> Conversations:
    """The stages; without any, `data.train`. Warnings count what is left out or cut.

    Raises ConfigError where there is nothing to train on, DataError that names the rows that cannot be used.
    """
    model = resolved.config.model
    encoder = Encoder(load_chat(model), longest_of(model, options), options.overlong)
    parts: list[Part] = []
    longest = 0
    for stage, component in _stages(options, resolved.config.data.train, resolved.base_dir):
        dataset = DATASETS.get(component.name)(component.options, resolved.base_dir)
        rows, tokens = _checked(dataset, encoder)
        longest = max(longest, tokens)
        first = parts[-1].last + 1 if parts else 1
        last = first + _steps(stage, len(rows), options.batch_size) - 1
        rate = stage.learning_rate or options.optimizer.learning_rate
        parts.append(Part(first, last, rows, rate, dataset.options.skip_bad_rows))
    if encoder.counts.rewritten:
        log.warning(
            "the chat template writes a whole conversation otherwise than the opening of a reply and what follows (the "
            "first: %s); the replies are learnt as they stand behind that opening",
            encoder.counts.rewritten,
        )
    return Conversations(tuple(parts), encoder, longest)


def longest_of(model: ModelConfig, options: SftOptions) -> Longest | None:
    """The longest conversation that may be learnt: what fits the model, or `train.max_tokens`."""
    architecture = load_architecture(model).get_text_config()
    positions = getattr(architecture, "max_position_embeddings", None)
    limits = [] if positions is None else [Longest(positions, f"the model has {positions:,} positions")]
    if options.max_tokens is not None:
        limits.append(Longest(options.max_tokens, f"train.max_tokens is {options.max_tokens:,}"))
    return min(limits, key=lambda limit: limit.tokens, default=None)


def planned_conversations(
    resolved: Resolved, options: SftOptions, problems: list[str]
) -> tuple[SftOptions, list[tuple[str, str]]]:
    """The options with the number of steps and a pass that holds the longest conversation, and what a plan says of the
    conversations. Why they cannot be read is added to `problems`."""
    try:
        found = read_conversations(resolved, options)
    except MemFactoryError as error:
        problems.append(str(error))
        return options, []
    counts = ", ".join(f"{len(part.rows):,}" for part in found.parts)
    passes = ", ".join(f"{part.steps * options.batch_size / len(part.rows):,.2f}" for part in found.parts)
    work = [("conversations" + " by stage" * (len(found.parts) > 1), counts), ("passes over them", passes)]
    work += [("longest conversation", f"{found.longest:,} tokens")] if found.longest else []
    largest = max(options.micro_batch_tokens, found.longest)
    return options.model_copy(update={"steps": found.steps, "micro_batch_tokens": largest}), work


def _stages(options: SftOptions, data: Component | None, base_dir: Path) -> list[tuple[SftStage, Component]]:
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
    looked_at = _held(rows)
    before = encoder.counts.dropped, encoder.counts.cut
    kept: list[Row] = []
    problems: list[str] = []
    longest = 0
    for row in looked_at:
        try:
            turns = encoder.turns(row, 0)
        except DataError as error:
            problems.append(str(error))
            if not dataset.options.skip_bad_rows and len(problems) >= SHOWN_PROBLEMS:
                break
            continue
        if turns:
            kept.append(row)
            longest = max(longest, *(turn.length for turn in turns))
    if problems and not dataset.options.skip_bad_rows:
        raise DataError("\n".join([*problems, "skip_bad_rows: true leaves such rows out."]))
    _warn(dataset, encoder, len(looked_at), problems, before)
    if not kept and not generated:
        raise DataError(f"{dataset.source} has no conversation that can be learnt; of its {len(rows)} none is left")
    return (rows if generated else kept), longest


def _held(rows: Sequence[Row]) -> list[Row]:
    """The rows out of files among `rows`, or of those that they are drawn from."""
    return [row for part in rows.mixed for row in _held(part)] if isinstance(rows, GeneratedRows) else list(rows)


def _warn(dataset: Dataset, encoder: Encoder, count: int, problems: Sequence[str], before: tuple[int, int]) -> None:
    """Say how many conversations of `count` are left out or cut."""
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
