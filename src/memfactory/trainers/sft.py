"""Supervised fine-tuning on conversations: the cold start before RL, and how the embedded model is made.

One optimizer step trains on the assistant's tokens of a batch of conversations.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from memfactory.build import Runtime, TrainingData
from memfactory.config.sft import SftOptions
from memfactory.data.base import Row
from memfactory.data.digest import rows_hash
from memfactory.plan.work import Forecast, Work
from memfactory.policy.conversations import Conversations, Stage, read_conversations
from memfactory.policy.policy import Policy
from memfactory.registry import TRAINERS
from memfactory.trainers.base import Run, Trainer
from memfactory.trainers.checkpoint import TrainState, read_state
from memfactory.trainers.diagnosis import Facts, Settings
from memfactory.trainers.order import epoch_order
from memfactory.trainers.watch import Watch

REPORTED = ("loss", "entropy", "tokens/trained", "grad_norm", "learning_rate", "skipped_steps")


@TRAINERS.register("sft", options="memfactory.config.sft:SftOptions")
class SftTrainer(Trainer[SftOptions, Policy, Conversations]):
    """Supervised fine-tuning on the assistant's side of conversations, in stages."""

    def __init__(
        self, options: SftOptions, runtime: Runtime, policy: Policy, conversations: Conversations, run: Run
    ) -> None:
        super().__init__(options, runtime, policy, conversations, run)
        self.stages = conversations.stages
        self.state = TrainState(data="-".join(rows_hash(stage.rows) for stage in self.stages))
        self.watch = Watch(Settings(learning_rate=options.optimizer.learning_rate), run)
        self._begin(self.stages[0])

    @classmethod
    def read(cls, options: SftOptions, data: TrainingData) -> Conversations:
        """Read and check the conversations of every stage."""
        return read_conversations(data.model, data.data, data.base_dir, options)

    @classmethod
    def plan(cls, options: SftOptions, forecast: Forecast) -> Work:
        """The number of conversations, the passes over them and the longest one."""
        conversations = forecast.tried(lambda: cls.read(options, forecast.data))
        if conversations is None:
            return Work(options.steps)
        stages = conversations.stages
        counts = ", ".join(f"{len(stage.rows):,}" for stage in stages)
        passes = ", ".join(f"{stage.steps * options.batch_size / len(stage.rows):,.2f}" for stage in stages)
        rows = [("conversations by stage" if len(stages) > 1 else "conversations", counts)]
        rows.append(("passes over them", passes))
        longest = conversations.longest
        rows += [("longest conversation", f"{longest:,} tokens")] if longest else []
        return Work(conversations.steps, tuple(rows), longest)

    @property
    def steps(self) -> int:
        return self.tasks.steps

    def conclude(self) -> None:
        self.watch.end()

    def resume(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        self._begin(self._stage(max(state.step, 1)))
        super().resume(checkpoint)

    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        stage = self._stage(step)
        if step == stage.first:
            self._begin(stage)
        policy, size = self.trained, self.options.batch_size
        begin = (step - stage.first) * size
        positions = range(begin + policy.process_index, begin + size, policy.process_count)
        turns = [stage.turns(self.tasks.encoder, self._row(stage, at), at) for at in positions]
        self.run.status("training")
        measured = policy.update([turn for conversation in turns for turn in conversation])
        self.watch.step(step, Facts(), [measured])
        metrics = {name: measured[name] for name in REPORTED if name in measured}
        metrics |= {"stage": float(self.stages.index(stage) + 1), "epoch": (begin + size) / len(stage.rows)}
        left_out = sum(not conversation for conversation in turns)
        metrics |= {"conversations/left_out": left_out} if left_out else {}
        return replace(self.state, step=step, cursor=self.state.cursor + size), metrics

    def _stage(self, step: int) -> Stage:
        """The stage of a step; the last one for a run that is resumed with fewer steps than it has taken."""
        return next((stage for stage in self.stages if step <= stage.last), self.stages[-1])

    def _begin(self, stage: Stage) -> None:
        """Start `stage` with a fresh optimizer and schedule."""
        options = self.options.optimizer.model_copy(update={"learning_rate": stage.learning_rate})
        self.trained.set_optimizer(options, stage.steps)

    def _row(self, stage: Stage, position: int) -> Row:
        """The row at `position`, which counts the rows of all epochs of the stage."""
        epoch, index = divmod(position, len(stage.rows))
        order = epoch_order(len(stage.rows), epoch, seed=self.runtime.seed, shuffle=self.tasks.shuffle)
        return stage.rows[order[index]]
