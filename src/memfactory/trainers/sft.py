"""Supervised fine-tuning on conversations: one optimizer step on the assistant's tokens of a batch of them.

It is the cold start before RL, and how the embedded model is made. It does not know what the conversations are about.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from memfactory.build import Runtime, TaskReader
from memfactory.config import Resolved
from memfactory.config.training import SftOptions
from memfactory.data.base import Row
from memfactory.data.digest import rows_hash
from memfactory.policy.conversations import Conversations, Part, read_conversations
from memfactory.policy.policy import Policy
from memfactory.registry import TRAINERS
from memfactory.trainers.base import Run, Trainer
from memfactory.trainers.checkpoint import TrainState, read_state
from memfactory.trainers.diagnosis import Facts, Settings
from memfactory.trainers.order import epoch_order
from memfactory.trainers.watch import Watch

REPORTED = ("loss", "entropy", "tokens/trained", "grad_norm", "learning_rate", "skipped_steps")


@TRAINERS.register("sft", options="memfactory.config.training:SftOptions")
class SftTrainer(Trainer):
    """Supervised fine-tuning on the assistant's side of conversations, in stages."""

    options: SftOptions

    def __init__(self, resolved: Resolved, options: SftOptions, stack: Runtime, policy: Policy, run: Run) -> None:
        conversations = self.read(resolved, options, stack.reader)
        super().__init__(resolved, options.model_copy(update={"steps": conversations.steps}), stack, policy, run)
        self.policy = policy
        self.parts = conversations.parts
        self.encoder = conversations.encoder
        self.state = TrainState(data="-".join(rows_hash(part.rows) for part in self.parts))
        order = partial(epoch_order, seed=resolved.config.seed, shuffle=resolved.config.data.shuffle)
        self.order = lru_cache(maxsize=2)(order)
        self.watch = Watch(Settings(learning_rate=options.optimizer.learning_rate), run)
        self._begin(self.parts[0])

    @staticmethod
    def read(resolved: Resolved, options: SftOptions, reader: TaskReader) -> Conversations:
        """The conversations of every stage, read and checked once in a run."""
        return reader.once(("conversations",), lambda: read_conversations(resolved, options))

    def conclude(self) -> None:
        self.watch.end()

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
        places = range(begin + policy.process_index, begin + size, policy.process_count)
        learnt = [part.turns(self.encoder, self._row(part, place), place) for place in places]
        self.run.status("training")
        measured = policy.update([turn for turns in learnt for turn in turns])
        self.watch.step(step, Facts(), [measured])
        metrics = {name: measured[name] for name in REPORTED if name in measured}
        metrics |= {"stage": float(self.parts.index(part) + 1), "epoch": (begin + size) / len(part.rows)}
        left_out = sum(not turns for turns in learnt)
        metrics |= {"conversations/left_out": left_out} if left_out else {}
        return replace(self.state, step=step, cursor=self.state.cursor + size), metrics

    def _part(self, step: int) -> Part:
        """The part of a step; a run that goes on with fewer steps than it has taken is at its last one."""
        return next((part for part in self.parts if step <= part.last), self.parts[-1])

    def _begin(self, part: Part) -> None:
        """A fresh optimizer and schedule for `part`."""
        options = self.options.optimizer.model_copy(update={"learning_rate": part.learning_rate})
        self.policy.set_optimizer(options, part.steps)

    def _row(self, part: Part, position: int) -> Row:
        """The row at `position` of the part's epochs, each in a seeded order of its own."""
        epoch, index = divmod(position, len(part.rows))
        return part.rows[self.order(len(part.rows), epoch)[index]]
