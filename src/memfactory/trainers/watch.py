"""Warnings of a run in progress: that nothing is learned, and that sampling and training differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from memfactory.config.grpo import GrpoOptions
from memfactory.dialogue import Agent
from memfactory.policy.measures import summarized
from memfactory.registry import Options
from memfactory.trainers.base import Run
from memfactory.trainers.diagnosis import FIRST_STEPS, Facts, Settings, diagnose, facts_of_updates, mismatch

log = logging.getLogger("memfactory")
LIMITS = ("max_tokens", "memory_tokens", "answer_tokens")
"""Options of modules that bound a reply."""


class Watch:
    """The facts of a run so far. The first process gives each warning once."""

    def __init__(self, settings: Settings, run: Run) -> None:
        self.settings = settings
        self.facts = Facts()
        self._run = run
        self._warned_of_mismatch = False

    def step(self, step: int, facts: Facts, updates: Sequence[Mapping[str, float]]) -> None:
        """Add the groups and updates of a step."""
        self.facts += facts + facts_of_updates(updates)
        if self.facts.steps == FIRST_STEPS:
            self._diagnose()
        warning = mismatch(summarized(updates).get("sampler_difference/mean"), self.settings.sampler_correction)
        if warning is not None and not self._warned_of_mismatch:
            self._warned_of_mismatch = True
            self._warn(f"step {step}: {warning}")

    def end(self) -> None:
        """The run has ended."""
        if self.facts.steps != FIRST_STEPS:
            self._diagnose()

    def _diagnose(self) -> None:
        diagnosis = diagnose(self.facts, self.settings)
        if diagnosis is not None:
            steps = self.facts.steps
            self._warn(f"after {steps} step{'s' if steps > 1 else ''}: {diagnosis}")

    def _warn(self, text: str) -> None:
        if self._run.main:
            log.warning("%s", text)


def settings_of(options: GrpoOptions, agent: Agent) -> Settings:
    """The settings that a diagnosis can name."""
    return Settings(
        group_size=options.group_size,
        temperature=options.temperature,
        mask_truncated=options.loss.mask_truncated,
        learning_rate=options.optimizer.learning_rate,
        sampler_correction=options.loss.sampler_correction,
        limits={
            step: (f"agent.modules.{slot}.{key}", value)
            for slot, module in agent.modules.items()
            for step, (key, value) in reply_limits(module.steps, module.options).items()
        },
    )


def reply_limits(steps: Sequence[str], options: Options) -> dict[str, tuple[str, int]]:
    """For each module step the option that holds its longest reply, and its value.

    It is called after the step (`answer_tokens`), or is the only one that no other step's name claims.
    """
    limits = {
        name: value
        for name in LIMITS
        if name in type(options).model_fields and isinstance(value := getattr(options, name), int)
    }
    claimed = {step: f"{step}_tokens" for step in steps if f"{step}_tokens" in limits}
    free = [name for name in limits if name not in claimed.values()]
    names = {step: claimed.get(step) or (free[0] if len(free) == 1 else None) for step in steps}
    return {step: (name, limits[name]) for step, name in names.items() if name is not None}
