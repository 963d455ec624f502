"""Options of supervised fine-tuning. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from memfactory.config.training import TrainerOptions
from memfactory.config.tree import KeyPath
from memfactory.registry import Options


class SftStage(Options):
    """One stage of a curriculum: a number of optimizer steps or epochs on one dataset."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps of this stage."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the dataset, instead of steps."""
    data: str | dict[str, object]
    """The dataset of this stage, as under `data.train`."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of this stage; null: the optimizer's."""

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> SftStage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a stage needs either steps or epochs")
        return self


OverlongRow = Literal["error", "drop", "cut"]
FULL_RATE, LORA_RATE = 1e-5, 1e-4


class SftOptions(TrainerOptions):
    """Supervised fine-tuning on conversations; the loss is on the assistant's tokens only."""

    plays: ClassVar[bool] = False
    resumable: ClassVar[frozenset[str]] = TrainerOptions.resumable | {"epochs"}

    steps: int = Field(0, ge=0)
    """Optimizer steps; 0: as many as `epochs` takes, or the sum of all stages."""
    epochs: float | None = Field(None, gt=0)
    """Passes over `data.train`, instead of steps; null: 1 without steps and stages."""
    batch_size: int = Field(64, ge=1)
    """Conversations in one optimizer step."""
    max_tokens: int | None = Field(None, ge=2)
    """The longest conversation in tokens; null: the model's context."""
    overlong: OverlongRow = "error"
    """Longer conversations stop the run before it begins (error), are left out (drop), or are truncated (cut)."""
    stages: tuple[SftStage, ...] = ()
    """A curriculum, one stage after the other; empty: `steps` or `epochs` on `data.train`."""

    def datasets(self) -> Iterator[tuple[KeyPath, object]]:
        for index, stage in enumerate(self.stages):
            yield ("stages", index, "data"), stage.data

    @model_validator(mode="before")
    @classmethod
    def _steps_are_those_of_the_stages(cls, values: Any) -> Any:
        stages = values.get("stages") if isinstance(values, dict) else None
        if isinstance(stages, (list, tuple)) and stages and "steps" not in values:
            plain = [stage.model_dump() if isinstance(stage, SftStage) else stage for stage in stages]
            steps = [stage.get("steps") if isinstance(stage, dict) else None for stage in plain]
            if all(isinstance(number, int) for number in steps):
                return {**values, "steps": sum(steps)}
        return values

    @model_validator(mode="before")
    @classmethod
    def _rate_of_supervised_learning(cls, values: Any) -> Any:
        """The default peak: that of RL is far too low for supervised learning."""
        optimizer = values.get("optimizer", {}) if isinstance(values, dict) else None
        if not isinstance(optimizer, dict) or "learning_rate" in optimizer:
            return values
        rate = FULL_RATE if values.get("lora") is None else LORA_RATE
        return {**values, "optimizer": {**optimizer, "learning_rate": rate}}

    @model_validator(mode="after")
    def _steps_agree(self) -> SftOptions:
        stage_steps = [stage.steps for stage in self.stages]
        total = sum(steps or 0 for steps in stage_steps) if None not in stage_steps else 0
        if self.stages and self.steps != total:
            has = f"have {total}" if total else "are counted in epochs"
            raise ValueError(f"steps is {self.steps}, but the stages {has}; leave steps out")
        if self.epochs is not None and (self.steps or self.stages):
            there = "stages, which have their own steps or epochs" if self.stages else "steps"
            raise ValueError(f"epochs is given beside {there}; leave one of the two out")
        return self
