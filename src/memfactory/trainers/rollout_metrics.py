"""Metrics of the groups of an optimizer step, over all processes; every process must call these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from accelerate.utils import gather_object

from memfactory.policy.batch import has_variance, step_rewards
from memfactory.rollout import TextsRead, texts_read
from memfactory.text import is_unfinished_thinking, unfinished_share
from memfactory.trainers.diagnosis import Facts, facts_of
from memfactory.trainers.unknown import TOTAL, count_unknown, summed
from memfactory.types import Group


def gathered_rewards(groups: Sequence[Group]) -> dict[str, list[float]]:
    """The known rewards of every trained step, of all processes."""
    merged: dict[str, list[float]] = {}
    for rewards in gather_object([step_rewards(groups)]):
        for step, values in rewards.items():
            merged.setdefault(step, []).extend(values)
    return merged


def gathered_texts(groups: Sequence[Group]) -> TextsRead:
    """Tokens of the texts that the episodes read and dropped, each task once."""
    own = {group.task.id: trajectory.reading for group in groups for trajectory in group.trajectories}
    return texts_read({task: reading for each in gather_object([own]) for task, reading in each.items()})


def gathered_facts(groups: Sequence[Group], teaches: Callable[[Group], bool] = has_variance) -> Facts:
    """Facts for a diagnosis of why nothing is learned; `teaches`: whether a group can train anything."""
    own = facts_of(groups, sum(map(teaches, groups)))
    return sum(gather_object([own]), Facts())


def gathered_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Metrics of the rollout over all processes. Every group counts, also those that train nothing."""
    rows = gather_object([_describe(group) for group in groups])
    if not rows:
        return {}
    trajectories = [t for row in rows for t in row["trajectories"]]
    known = [t["reward"] for t in trajectories if t["reward"] is not None]
    turns = [turn for t in trajectories for turn in t["turns"]]
    metrics = mean_rewards(known, [t["parts"] for t in trajectories])
    valid = sum(row["variance"] for row in rows)
    metrics |= {
        "groups": len(rows),
        "groups/valid": valid,
        "groups/zero_variance": 1 - valid / len(rows),
        "groups/unknown": 1 - len(known) / len(trajectories),
        "turns": len(turns) / len(trajectories),
        "tokens/sampled": sum(length for _, length, *_ in turns),
        "tokens/prompts": sum(length for length, *_ in turns),
    }
    unknown = summed(gather_object([count_unknown(groups)]))
    for name, number in {**unknown.parts, **unknown.credits}.items():
        if name != TOTAL:
            metrics[f"unknown/{name}"] = number / unknown.episodes
    if turns:
        metrics["reply_tokens"] = fmean(length for _, length, *_ in turns)
        metrics["truncated"] = fmean(cut for _, _, cut, _ in turns)
        metrics |= unfinished_thinking([state for *_, state in turns])
    return metrics


def unfinished_thinking(states: Sequence[bool | None]) -> dict[str, float]:
    """The metric of replies whose thinking never ended; nothing if no reply thinks."""
    share = unfinished_share(states)
    return {} if share is None else {"unfinished_thinking": share}


def mean_rewards(known: Sequence[float], parts: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The means of the known rewards and of their known parts, as `reward` and `reward/PART`."""
    metrics = {"reward": fmean(known)} if known else {}
    for part in sorted({part for each in parts for part in each}):
        values = [value for each in parts if (value := each.get(part)) is not None]
        if values:
            metrics[f"reward/{part}"] = fmean(values)
    return metrics


def _describe(group: Group) -> dict[str, Any]:
    return {
        "variance": has_variance(group),
        "trajectories": [
            {
                "reward": trajectory.reward.total,
                "parts": dict(trajectory.reward.parts),
                "turns": [
                    (
                        len(tokens.prompt_ids),
                        len(tokens.reply_ids),
                        turn.reply.stop == "length",
                        is_unfinished_thinking(turn.reply.text),
                    )
                    for turn in trajectory.turns
                    if (tokens := turn.reply.tokens) is not None
                ],
            }
            for trajectory in group.trajectories
        ],
    }
