"""Supervised fine-tuning on conversations: one optimizer step on the assistant's tokens of a batch of them.

It is the cold start before RL, and how the embedded model is made. It does not know what the conversations are about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from memfactory.build import Stack
from memfactory.config import Resolved
from memfactory.config.datasets import dataset_values
from memfactory.config.schema import Component
from memfactory.config.training import SftOptions
from memfactory.data.base import Row
from memfactory.data.digest import rows_hash
from memfactory.engines.chat import TURN_ENDS, ChatFormat
from memfactory.errors import ConfigError, DataError
from memfactory.registry import DATASETS, TRAINERS
from memfactory.trainers.base import Run, Trainer
from memfactory.trainers.batch import TrainingTurn
from memfactory.trainers.checkpoint import TrainState, read_state
from memfactory.trainers.order import epoch_order
from memfactory.trainers.policy import Policy
from memfactory.types import Message

ROLES = ("system", "user", "assistant")
REPORTED = ("loss", "entropy", "tokens/trained", "grad_norm", "learning_rate", "skipped_steps")


@dataclass(frozen=True)
class Part:
    """A stage as it is trained: optimizer steps `first` to `last` on `rows`, at `learning_rate`."""

    first: int
    last: int
    rows: Sequence[Row]
    learning_rate: float

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


@TRAINERS.register("sft", options="memfactory.config.training:SftOptions")
class SftTrainer(Trainer):
    """Supervised fine-tuning on the assistant's side of conversations, in stages."""

    options: SftOptions

    def __init__(self, resolved: Resolved, options: SftOptions, stack: Stack, policy: Policy, run: Run) -> None:
        super().__init__(resolved, options, stack, policy, run)
        self.policy = policy
        self.parts = parts(options, resolved.config.data.train, resolved.base_dir)
        self.state = TrainState(data="-".join(rows_hash(part.rows) for part in self.parts))
        order = partial(epoch_order, seed=resolved.config.seed, shuffle=resolved.config.data.shuffle)
        self.order = lru_cache(maxsize=2)(order)
        self._begin(self.parts[0])

    def finished(self) -> bool:
        return self.state.step >= self.parts[-1].last

    def resume(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        self._begin(self._part(max(state.step, 1)))
        super().resume(checkpoint)

    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        part = self._part(step)
        if step == part.first:
            self._begin(part)
        policy, size = self.policy, self.options.batch_size
        begin = (step - part.first) * size
        turns = [
            turn
            for position in range(begin + policy.process_index, begin + size, policy.process_count)
            for turn in supervised_turns(self._row(part, position), policy.chat, position)
        ]
        self.run.status("training")
        measured = policy.update(turns)
        metrics = {name: measured[name] for name in REPORTED if name in measured}
        stage = float(self.parts.index(part) + 1)
        return replace(self.state, step=step, cursor=self.state.cursor + size), {"stage": stage, **metrics}

    def _part(self, step: int) -> Part:
        return next(part for part in self.parts if step <= part.last)

    def _begin(self, part: Part) -> None:
        """A fresh optimizer and schedule for `part`."""
        options = self.options.optimizer.model_copy(update={"learning_rate": part.learning_rate})
        self.policy.set_optimizer(options, part.steps)

    def _row(self, part: Part, position: int) -> Row:
        """The row at `position` of the part's epochs, each in a seeded order of its own."""
        epoch, index = divmod(position, len(part.rows))
        return part.rows[self.order(len(part.rows), epoch)[index]]


def parts(options: SftOptions, data: Component | None, base_dir: Path) -> tuple[Part, ...]:
    """The stages in order; without any, `steps` on `data`. Raises ConfigError where there is nothing to train on."""
    rate = options.optimizer.learning_rate
    if not options.stages:
        if data is None:
            raise ConfigError("data.train: SFT needs conversations, but neither data.train nor train.stages names any")
        return (Part(1, options.steps, _rows(data, base_dir), rate),)
    found: list[Part] = []
    for stage in options.stages:
        first = found[-1].last + 1 if found else 1
        rows = _rows(_component(stage.data, base_dir), base_dir)
        found.append(Part(first, first + stage.steps - 1, rows, stage.learning_rate or rate))
    return tuple(found)


def _component(spec: str | dict[str, object], base_dir: Path) -> Component:
    values = dataset_values(spec, base_dir)
    name = values.pop("name")
    return Component(name, DATASETS.options(name).model_validate(values))


def _rows(component: Component, base_dir: Path) -> Sequence[Row]:
    dataset = DATASETS.get(component.name)(component.options, base_dir)
    rows: Sequence[Row] = dataset.rows()
    if dataset.options.skip_bad_rows:
        rows = [row for row in rows if _usable(row)]
    if not rows:
        raise DataError(f"{dataset.source} has no conversations to train on")
    return rows


def _usable(row: Row) -> bool:
    try:
        conversation(row)
    except DataError:
        return False
    return True


def conversation(row: Row) -> tuple[Message, ...]:
    """The messages of `row`. Raises DataError that names the row, the field, what was given and expected."""
    if row.problem is not None:
        raise DataError(f"{row.source}: {row.problem}")
    given = row.values.get("messages")
    if not isinstance(given, list) or not given:
        fields = ", ".join(row.values) or "none"
        raise DataError(f"{row.source}: field 'messages' should be a list of messages; the row's fields: {fields}")
    messages = tuple(_message(value, f"{row.source}: messages[{index}]") for index, value in enumerate(given))
    if all(message.role != "assistant" for message in messages):
        raise DataError(f"{row.source}: no message is the assistant's, so there is nothing to learn")
    if messages[0].role == "assistant":
        raise DataError(f"{row.source}: the first message is the assistant's; a system or user message should precede")
    return messages


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f"{place} should be an object with role and content, got {value!r:.80}")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise DataError(f"{place}.role should be one of {', '.join(ROLES)}, got {role!r:.80}")
    if not isinstance(content, str):
        raise DataError(f"{place}.content should be a text, got {content!r:.80}")
    return Message(role, content)


def supervised_turns(row: Row, chat: ChatFormat, number: int) -> list[TrainingTurn]:
    """One turn for each of the assistant's messages, after all that came before it; the end token is learnt too."""
    messages = conversation(row)
    end = _turn_end(chat)
    turns = []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            encoded = chat.tokenizer(message.content, add_special_tokens=False, split_special_tokens=True)
            turns.append(
                TrainingTurn(
                    prompt_ids=chat.prompt_ids(messages[:index]),
                    reply_ids=(*encoded["input_ids"], end),
                    advantage=1.0,
                    trajectory=number,
                    prompt=number,
                    step="assistant",
                )
            )
    return turns


def _turn_end(chat: ChatFormat) -> int:
    """The id that ends the assistant's turn: the template's own where the tokenizer has one, else its end token."""
    vocabulary = chat.tokenizer.get_vocab()
    named = [vocabulary[end] for end in TURN_ENDS if end in vocabulary]
    return named[0] if named else int(chat.tokenizer.eos_token_id)
