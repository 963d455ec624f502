"""`write_traces`: demonstrations of a config's agent on its training rows, as a file for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from memfactory.api.sources import Overrides, Source, resolved_config
from memfactory.build import build_agent, training_data
from memfactory.config import Resolved
from memfactory.data.base import DatasetOptions
from memfactory.data.writing import WRITERS, OnProgress, Report, write_rows
from memfactory.demonstrations import Demonstrations, Demonstrator, checked_kinds, demonstrations
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.errors import ConfigError, DataError
from memfactory.files.places import expanded
from memfactory.model.near_models import is_tokenizer
from memfactory.types import Codec

EXAMPLES = 3
"""The number of tasks that a note about left-out rows names."""


@dataclass(frozen=True)
class TracesOptions:
    """Options of `write_traces`: the most training rows to play (None: all), the most turns of each kind that the file
    holds (a kind that is not named: all), and the seed that samples them."""

    rows: int | None = None
    turns: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    on_progress: OnProgress | None = None


DEFAULTS = TracesOptions()


def write_traces(
    source: Source, output: Path, *overrides: Overrides, options: TracesOptions = DEFAULTS, trust: bool = False
) -> Report:
    """Play the agent of a config over its training rows with replies that a rule writes, and write each turn as a row.

    The file (.jsonl, .json or .parquet) is training data for `train: {name: sft}`: one row a turn with `messages` as
    the agent sends them, and the `step`, the `kind` of reply and the `task`. No weights are loaded, only the tokenizer
    that cuts the text into chunks. Tasks for which the rule cannot tell are left out; the report's notes count them.

    Raises ConfigError if a module of the agent has no such rule, DataError if no row can be demonstrated.
    """
    if output.suffix not in WRITERS:
        raise ConfigError(f"--output {output}: expected a file that ends in {', '.join(WRITERS)}")
    resolved = resolved_config(source, overrides, "traces", trust=trust)
    demonstrator = Demonstrator(build_agent(resolved.config.agent, _codec(resolved)))
    most = checked_kinds(options.turns, demonstrator.kinds)
    every = demonstrations(demonstrator, training_data(_limited(resolved, options.rows)).tasks())
    if not every.turns:
        raise DataError("no row can be demonstrated: " + "; ".join(_notes(every)))
    chosen = every.sampled(most, options.seed)
    rows = (turn.row() for turn in chosen.turns)
    written = write_rows(output, rows, len(chosen.turns), on_progress=options.on_progress)
    counts = ", ".join(f"{chosen.counts.get(kind, 0)} of {every.counts.get(kind, 0)} {kind}" for kind in every.counts)
    return Report((written,), (f"turns: {counts}", *_notes(every)))


def _notes(made: Demonstrations) -> list[str]:
    return [
        f"{len(ids)} row{'s are' if len(ids) > 1 else ' is'} left out: {reason} "
        f"(task {', '.join(ids[:EXAMPLES])}{', ...' if len(ids) > EXAMPLES else ''})"
        for reason, ids in made.left_out.items()
    ]


def _codec(resolved: Resolved) -> Codec:
    config = resolved.config
    if isinstance(config.engine, OpenAIEngineConfig):
        from memfactory.model.codec import FileCodec

        return FileCodec(config.engine.tokenizer or config.model.path)
    if is_tokenizer(expanded(config.model.path)):
        from memfactory.model.codec import FileCodec

        return FileCodec(config.model.path)
    from memfactory.model.loading import load_chat

    return load_chat(config.model)


def _limited(resolved: Resolved, rows: int | None) -> Resolved:
    """The config with at most `rows` training rows."""
    train = resolved.config.data.train
    if rows is None or train is None or not isinstance(train.options, DatasetOptions):
        return resolved
    limited = replace(train, options=train.options.model_copy(update={"limit": train.options.at_most(rows)}))
    data = resolved.config.data.model_copy(update={"train": limited})
    return replace(resolved, config=resolved.config.model_copy(update={"data": data}))
