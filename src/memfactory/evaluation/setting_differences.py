"""In what the settings of several targets differ, so that a table says what else is compared. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from memfactory.config.agent_file import flattened
from memfactory.evaluation.targets import Target

SHOWN = 6
_DRAWN = ("samples", "temperature", "top_p", "top_k", "seed", "limit", "metrics")
_OF_THE_MODEL = ("dtype", "template_options", "chat_template")
_SILENT = ("interface", "weights")
"""Options of modules that change nothing in an evaluation, or say which weights are evaluated."""

Differing = Mapping[str, Mapping[str, object]]
"""A setting to its value by target."""


def differing_settings(targets: Sequence[Target]) -> Differing:
    """Each setting that is not alike for all targets, with its value by label; what a target lacks is None.

    Baselines stand for the target that they are set beside: that they are other agents is their point.
    """
    configured = [next(same) for _, same in groupby(targets, key=lambda target: target.source)]
    settings = {target.label: {**_settings(target), "judge": target.fingerprint.get("judge")} for target in configured}
    keys = dict.fromkeys(key for found in settings.values() for key in found)
    values = {key: {label: found.get(key) for label, found in settings.items()} for key in keys}
    agents = {str(value) for value in values.get("agent.name", {}).values()}
    return {
        key: by_label
        for key, by_label in values.items()
        if any(value != next(iter(by_label.values())) for value in by_label.values())
        # What another agent's modules are told has nothing to be compared with.
        and (len(agents) == 1 or not key.startswith("agent.") or key == "agent.name")
    }


def difference_notes(found: Differing) -> tuple[str, ...]:
    """The differences in words; none where all is alike."""
    if not found:
        return ()
    lines = [f"{key}: {_by_value(by_label)}" for key, by_label in list(found.items())[:SHOWN]]
    more = [f"and {len(found) - SHOWN} more settings (see results.json)"] if len(found) > SHOWN else []
    return ("Not only the models differ: " + "; ".join([*lines, *more]),)


def _by_value(by_label: Mapping[str, object]) -> str:
    labels: dict[str, list[str]] = {}
    for label, value in by_label.items():
        text = "not set" if value is None else str(value)
        labels.setdefault(text if len(text) <= 60 else f"{text[:57]}...", []).append(label)
    if len(labels) == 1:
        # Long texts can be alike in what is shown of them.
        return "another text for each"
    return ", ".join(f"{value} ({' and '.join(names)})" for value, names in labels.items())


def _settings(target: Target) -> dict[str, object]:
    """What a score depends on beside the weights, by dotted key."""
    values = target.resolved.values
    env = dict(values["env"])
    rewards = env.pop("rewards", {})
    sections = {
        "agent": values["agent"],
        "env": {**env, "rewards": _scoring(rewards)},
        "memory": values["memory"],
        "eval": {key: values["eval"][key] for key in _DRAWN},
        "model": {key: values["model"][key] for key in _OF_THE_MODEL},
        "engine": {"kind": values["engine"]["kind"]},
    }
    found: dict[str, object] = {}
    for name, section in sections.items():
        found |= flattened(section, name, without=_SILENT)
    return found


def _scoring(rewards: object) -> dict[str, object]:
    """The options of rewards without their weights, which no evaluation looks at."""
    given = rewards.items() if isinstance(rewards, Mapping) else ()
    return {
        name: {key: value for key, value in entry.items() if key != "weight"}
        for name, entry in given
        if isinstance(entry, Mapping)
    }
