"""The settings in which several targets differ, for a note above the tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from memfactory.config.agent_file import flattened
from memfactory.evaluation.targets import Target

SHOWN = 6
_SAMPLING = ("samples", "temperature", "top_p", "top_k", "seed", "limit", "metrics")
_OF_THE_MODEL = ("dtype", "template_options", "chat_template")
_SILENT = ("interface", "weights")
"""Options of modules that change nothing in an evaluation, or name the weights under evaluation."""

Differing = Mapping[str, Mapping[str, object]]
"""A setting to its value by target."""


def differing_settings(targets: Sequence[Target]) -> Differing:
    """Each setting that differs between targets, with its value by label; None for a target without it.

    Baselines are left out: they differ from their target on purpose.
    """
    configured = [next(group) for _, group in groupby(targets, key=lambda target: target.source)]
    settings = {target.label: {**_settings(target), "judge": target.fingerprint.get("judge")} for target in configured}
    keys = dict.fromkeys(key for by_key in settings.values() for key in by_key)
    values = {key: {label: by_key.get(key) for label, by_key in settings.items()} for key in keys}
    agents = {str(value) for value in values.get("agent.name", {}).values()}
    return {
        key: by_label
        for key, by_label in values.items()
        if any(value != next(iter(by_label.values())) for value in by_label.values())
        # Options of different agents have no counterparts.
        and (len(agents) == 1 or not key.startswith("agent.") or key == "agent.name")
    }


def difference_notes(differing: Differing) -> tuple[str, ...]:
    """The differences in words; none if no setting differs."""
    if not differing:
        return ()
    lines = [f"{key}: {_by_value(by_label)}" for key, by_label in list(differing.items())[:SHOWN]]
    more = [f"and {len(differing) - SHOWN} more settings (see results.json)"] if len(differing) > SHOWN else []
    return ("Not only the models differ: " + "; ".join([*lines, *more]),)


def _by_value(by_label: Mapping[str, object]) -> str:
    labels: dict[str, list[str]] = {}
    for label, value in by_label.items():
        text = "not set" if value is None else str(value)
        labels.setdefault(text if len(text) <= 60 else f"{text[:57]}...", []).append(label)
    if len(labels) == 1:
        # Long texts can begin alike.
        return "a different text for each"
    return ", ".join(f"{value} ({' and '.join(names)})" for value, names in labels.items())


def _settings(target: Target) -> dict[str, object]:
    """The settings other than the weights that scores depend on, by dotted key."""
    values = target.resolved.values
    env = dict(values["env"])
    rewards = env.pop("rewards", {})
    sections = {
        "agent": values["agent"],
        "env": {**env, "rewards": _scoring(rewards)},
        "memory": values["memory"],
        "eval": {key: values["eval"][key] for key in _SAMPLING},
        "model": {key: values["model"][key] for key in _OF_THE_MODEL},
        "engine": {"kind": values["engine"]["kind"]},
    }
    settings: dict[str, object] = {}
    for name, section in sections.items():
        settings |= flattened(section, name, without=_SILENT)
    return settings


def _scoring(rewards: object) -> dict[str, object]:
    """The options of rewards without their weights, which evaluations do not use."""
    entries = rewards.items() if isinstance(rewards, Mapping) else ()
    return {
        name: {key: value for key, value in entry.items() if key != "weight"}
        for name, entry in entries
        if isinstance(entry, Mapping)
    }
