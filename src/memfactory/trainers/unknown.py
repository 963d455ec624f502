"""Unknown rewards at every level: the total, a module step, a named part. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memfactory.policy.batch import trained_steps
from memfactory.types import Group

TOTAL = "total"


@dataclass(frozen=True)
class Unknown:
    """Numbers of unknown rewards, of episodes that fit the context.

    `credits` counts the rewards that train: `total`, and each trained module step with rewards of its own. `parts`
    counts the named rewards before weighting.
    """

    episodes: int
    credits: Mapping[str, int]
    parts: Mapping[str, int]


def count_unknown(groups: Sequence[Group]) -> Unknown:
    """The unknown rewards of `groups`. Episodes that do not fit the context are in no count but that of episodes."""
    episodes, credits, parts = 0, Counter[str](), Counter[str]()
    for group in groups:
        episodes += len(group.trajectories)
        own = {step for trajectory in group.trajectories for step in trajectory.reward.steps}
        steps = [step for step in trained_steps(group) if step in own]
        for reward in (trajectory.reward for trajectory in group.trajectories if not trajectory.overlong):
            credits[TOTAL] += reward.total is None
            for step in steps:
                credits[step] += reward.of_step(step) is None
            for name, part in reward.parts.items():
                parts[name] += part is None
    return Unknown(episodes, {name: n for name, n in credits.items() if n}, {name: n for name, n in parts.items() if n})


def summed(counts: Sequence[Unknown]) -> Unknown:
    """The counts of several processes as one."""
    credits, parts = Counter[str](), Counter[str]()
    for process in counts:
        credits.update(process.credits)
        parts.update(process.parts)
    return Unknown(sum(process.episodes for process in counts), dict(credits), dict(parts))


def excess(unknown: Unknown, fraction: float, episodes: int) -> str | None:
    """A message if more than this fraction of `episodes` rewards is unknown; None otherwise."""
    beyond = {name: n for name, n in unknown.credits.items() if n > fraction * episodes}
    if not beyond:
        return None
    if TOTAL in beyond:
        return f"{beyond[TOTAL]} of {episodes} rewards are unknown"
    step = max(beyond, key=lambda name: beyond[name])
    return f"{beyond[step]} of {episodes} rewards that credit the module step {step!r} are unknown"
