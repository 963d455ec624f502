"""Why a run learns nothing, and which key to change: rules over counts. Pure; it knows no model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memfactory.text import is_unfinished_thinking
from memfactory.types import Group

FIRST_STEPS = 5
"""Steps after which a diagnosis is made of a run that has learned nothing."""
MOSTLY = 0.5
"""The fraction above which something counts as the cause."""
THINKING_OFF = "model.template_options: {enable_thinking: false}"
MISMATCH = 0.01
"""The mean difference of log-probabilities above which sampling and training count as two distributions."""


@dataclass(frozen=True)
class Facts:
    """Counts over some steps and all processes.

    `groups` and `valid` (those whose rewards differ), `episodes` with those that did not fit the context (`overlong`)
    or have an unknown reward for another reason (`unknown`), and the range of the known rewards. `replies` and `cut`
    count, by module step, the replies of the policy and those cut by length, and `unfinished` those whose thinking
    never ended. `tokens` were trained on in `updates` optimizer steps, of which `skipped` had a gradient that is not
    finite; `largest_norm` is that of the others.
    """

    steps: int = 0
    groups: int = 0
    valid: int = 0
    episodes: int = 0
    overlong: int = 0
    unknown: int = 0
    lowest: float | None = None
    highest: float | None = None
    replies: Mapping[str, int] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)
    unfinished: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    updates: int = 0
    skipped: int = 0
    largest_norm: float | None = None

    def __add__(self, other: Facts) -> Facts:
        """The sum of both."""
        numbers = ("steps", "groups", "valid", "episodes", "overlong", "unknown", "tokens", "updates", "skipped")
        lows = [value for value in (self.lowest, other.lowest) if value is not None]
        highs = [value for value in (self.highest, other.highest) if value is not None]
        norms = [value for value in (self.largest_norm, other.largest_norm) if value is not None]
        return Facts(
            **{name: getattr(self, name) + getattr(other, name) for name in numbers},
            lowest=min(lows, default=None),
            highest=max(highs, default=None),
            replies=Counter(self.replies) + Counter(other.replies),
            cut=Counter(self.cut) + Counter(other.cut),
            unfinished=Counter(self.unfinished) + Counter(other.unfinished),
            largest_norm=max(norms, default=None),
        )


@dataclass(frozen=True)
class Settings:
    """The settings that a diagnosis can name. `limits` maps a module step to the key of its longest reply and the
    value."""

    group_size: int = 1
    temperature: float = 1.0
    mask_truncated: bool = False
    learning_rate: float = 1e-6
    sampler_correction: str = "none"
    limits: Mapping[str, tuple[str, int]] = field(default_factory=dict)


def facts_of(groups: Sequence[Group], valid: int) -> Facts:
    """The facts of these groups, `valid` of which have rewards that differ."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    # Rewards that credit a module step count like the total.
    known = [
        value
        for trajectory in trajectories
        for value in (trajectory.reward.total, *trajectory.reward.steps.values())
        if value is not None
    ]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns if turn.trainable]
    return Facts(
        groups=len(groups),
        valid=valid,
        episodes=len(trajectories),
        overlong=sum(trajectory.overlong for trajectory in trajectories),
        unknown=sum(t.reward.total is None and not t.overlong for t in trajectories),
        lowest=min(known, default=None),
        highest=max(known, default=None),
        replies=Counter(turn.step for turn in turns),
        cut=Counter(turn.step for turn in turns if turn.reply.stop == "length"),
        unfinished=Counter(turn.step for turn in turns if is_unfinished_thinking(turn.reply.text)),
    )


def facts_of_updates(updates: Sequence[Mapping[str, float]]) -> Facts:
    """The facts of one step's updates; updates without anything to train on are empty."""
    taken = [update for update in updates if update]
    norms = [update["grad_norm"] for update in taken]
    finite = [norm for norm in norms if math.isfinite(norm)]
    return Facts(
        steps=1,
        tokens=int(sum(update["tokens/trained"] for update in taken)),
        updates=len(taken),
        skipped=len(norms) - len(finite),
        largest_norm=max(finite, default=None),
    )


def diagnose(facts: Facts, settings: Settings) -> str | None:
    """The reason why nothing was learned, with the keys to change; None if something was, or if there is no data
    yet."""
    if facts.groups == facts.steps == 0:
        return None
    if facts.groups and facts.valid == 0:
        reasons = _without_variance(facts, settings)
        which = f"none of the {facts.groups} groups had" if facts.groups > 1 else "the one group did not have"
        return f"{which} rewards that differ, so nothing was learned. {' '.join(reasons)}"
    if facts.updates and facts.skipped == facts.updates:
        return (
            f"the gradient of all {facts.updates} optimizer steps was not finite, so nothing was learned. Lower "
            f"train.optimizer.learning_rate (now {settings.learning_rate:g}), or write model.dtype: float32."
        )
    if facts.tokens == 0:
        reasons = _cut(facts, settings) if settings.mask_truncated else []
        masked = "train.loss.mask_truncated leaves out replies that were cut by length. " if reasons else ""
        return f"no token was trained on, so nothing was learned. {masked}{' '.join(reasons)}".rstrip()
    if facts.largest_norm == 0:
        return (
            f"the gradient of all {facts.updates} optimizer steps was exactly 0, so nothing was learned. No loss "
            "reaches the trained parameters: check train.lora.target_modules and train.loss (clip ranges, corrections)."
        )
    return None


def mismatch(difference: float | None, correction: str) -> str | None:
    """A warning of the mean difference between the sampler's and the trainer's log-probabilities, or None."""
    if difference is None or difference <= MISMATCH or correction not in ("none", "auto"):
        return None
    return (
        f"the engine's log-probabilities differ from the trainer's by {difference:.3g} on average "
        f"(sampler_difference/mean, above {MISMATCH:g}), and nothing corrects for it: replies are sampled from "
        "another distribution than the trained one. train.loss.sampler_correction: token_truncate weighs each token by "
        "the ratio of the two; under model.dtype: float32 an hf engine's log-probabilities equal the trainer's."
    )


def _without_variance(facts: Facts, settings: Settings) -> list[str]:
    """The likely causes, each with the key to change."""
    if settings.group_size == 1:
        return ["A group of one episode has no variance: raise train.group_size (8 is usual)."]
    if facts.overlong > MOSTLY * facts.episodes:
        return [
            f"{facts.overlong} of {facts.episodes} episodes did not fit the context: shorten the agent's prompts, "
            "take a model with a longer context, or leave such tasks out (train.overlong: drop)."
        ]
    if facts.lowest is None:
        return ["No reward is known: look at the judge, or at the rows' gold answers."]
    return [*_cut(facts, settings), *_equal(facts, settings)]


def _cut(facts: Facts, settings: Settings) -> list[str]:
    """The module steps whose replies are mostly cut by length."""
    causes = []
    for step, cut in facts.cut.items():
        if cut > MOSTLY * facts.replies[step]:
            key, value = settings.limits.get(step, ("its longest reply", 0))
            now = f" (now {value})" if value else ""
            thinking = facts.unfinished.get(step, 0)
            inside = f", {thinking} of them inside thinking" if thinking else ""
            turn_off = f", or turn thinking off ({THINKING_OFF})" if thinking > MOSTLY * cut else ""
            replies = f"{cut} of {facts.replies[step]} replies of {step!r}"
            causes.append(f"{replies} were cut by length{inside}: raise {key}{now}{turn_off}.")
    return causes


def _equal(facts: Facts, settings: Settings) -> list[str]:
    """Causes of equal rewards: tasks, reward or sampling."""
    if facts.lowest is None or facts.highest is None:
        return []
    if facts.lowest < facts.highest:
        hotter = f"raise train.temperature (now {settings.temperature:g}), " if settings.temperature < 1 else ""
        return [
            f"Every task is always or never solved: {hotter}raise train.group_size (now {settings.group_size}), use "
            "tasks of middling difficulty, or a reward with more than two values."
        ]
    if facts.highest <= 0:
        return [
            f"Every reward was {facts.highest:g}: use easier data or a reward with partial credit, or fine-tune first "
            "(train: sft). Check in transcripts/ whether replies have the form that the reward reads."
        ]
    if facts.lowest >= 1:
        return [f"Every reward was {facts.lowest:g}: use harder data."]
    return [f"Every reward was {facts.lowest:g}: env.rewards does not distinguish answers."]
