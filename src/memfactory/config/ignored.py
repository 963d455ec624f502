"""Keys of a config without effect: an error if they mislead, else a warning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from memfactory.components import ModuleOptions
from memfactory.config.correction import auto_loss, chosen_correction
from memfactory.config.parts import PART_FOLDERS, packaged_configs
from memfactory.config.problems import Problems, shown
from memfactory.config.readiness import on_gpu
from memfactory.config.rules import models, reward_engines
from memfactory.config.schema import Component, RunConfig
from memfactory.config.slots import layer_of
from memfactory.config.trained import trainer_options
from memfactory.config.tree import KeyPath, Origin, Tree, dotted
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.registry import MODULES, REWARDS, Options

POLICY_DECODING = ("temperature", "top_p")
_BANK_ROLES = {"extractor", "updater", "retriever"}
_LOCAL_MODEL_KEYS = ("adapter", "chat_template", "template_options")


def refuse_policy_decoding(tree: Tree, problems: Problems, written_by_user: int) -> None:
    """Refuse `engine.temperature` and `engine.top_p`, which are not settings of the policy's engine.

    A run's own config.yaml, in which every key was written out once, may hold them below the layer `written_by_user`.
    """
    engine = tree.values.get("engine")
    if not isinstance(engine, dict):
        return
    for key in [key for key in POLICY_DECODING if key in engine]:
        if tree.values.get("resolved") is True and layer_of(tree.origins, ("engine", key)) < written_by_user:
            del engine[key]
            continue
        infer = " and --temperature of `memfactory infer`" if key == "temperature" else ""
        problems.add(
            ("engine", key),
            f"has no effect on the policy, whose sampling parameters are train.{key} in training, eval.{key} in "
            f"evaluation{infer}; only other engines, under `engines:`, have a {key} of their own",
        )


def without_effect(config: RunConfig, tree: Tree, *, training: bool, written_by_user: int) -> Iterator[str]:
    """Warn of every key that the user changed from its default and that has no effect beside the other keys.

    Keys of the trainer count only in a config for `training`. The user's keys are those of their own files and, from
    the layer `written_by_user` on, of the command line; not those of the parts that come with MemFactory, nor of a
    run's own config.yaml, in which every key is written out.
    """
    for path, why in _all_without_effect(config, training=training):
        origin = tree.origins.get(path)
        command_line = layer_of(tree.origins, path) >= written_by_user
        if command_line or not (tree.values.get("resolved") is True or (origin is not None and _is_packaged(origin))):
            yield f"{dotted(path)}{why}"


def _is_packaged(origin: Origin) -> bool:
    """Whether `origin` is a part that comes with MemFactory."""
    file = Path(origin.source)
    return file.parent.name in PART_FOLDERS.values() and file.parent.parent.resolve() == packaged_configs().resolve()


def _all_without_effect(config: RunConfig, *, training: bool) -> Iterator[tuple[KeyPath, str]]:
    """Every key that differs from its default and has no effect, with a message."""
    for path, options in _sections(config):
        if training or path != ("train",):
            yield from _idle(options, path)
    yield from _unused_engines(config)
    yield from _model_behind_an_endpoint(config)
    train = trainer_options(config) if training else None
    if train is not None and train.eval_every and not config.data.eval:
        yield ("train", "eval_every"), f": {train.eval_every} has no effect: data.eval names no evaluation set"
    loss = None if train is None else auto_loss(train)
    if loss is not None and chosen_correction(config, cuda=on_gpu(config.model))[0] == "none":
        for key in _changed(loss).keys() & {"correction_high"}:
            why = "sampler_correction is none here (auto)"
            yield ("train", "loss", key), f": {getattr(loss, key):g} has no effect: {why}"
    roles = [set(MODULES.get(module.name).roles) for module in config.agent.modules.values()]
    if roles and all(roles) and not any(known & _BANK_ROLES for known in roles):
        for key in _changed(config.memory):
            yield ("memory", key), f" has no effect: agent {config.agent.name!r} has no memory bank"


def _sections(config: RunConfig) -> Iterator[tuple[KeyPath, Options]]:
    """Every options object of the config by its key, without those inside others."""
    yield ("engine",), config.engine
    yield from ((("engines", name), engine) for name, engine in config.engines.items())
    yield from ((path, model) for path, model in models(config).items())
    yield from (((name,), getattr(config, name)) for name in ("memory", "eval"))
    yield from ((("trackers", index), tracker) for index, tracker in enumerate(config.trackers))
    yield from (((name,), getattr(config, name).options) for name in ("agent", "env"))
    yield from ((("agent", "modules", slot), module.options) for slot, module in config.agent.modules.items())
    rewards = getattr(config.env.options, "rewards", {})
    for name, entry in rewards.items() if isinstance(rewards, dict) else ():
        if isinstance(entry, dict) and name in REWARDS.names():
            yield ("env", "rewards", name), REWARDS.options(name).model_validate(entry)
    sets: dict[KeyPath, Component | None] = {("train",): config.train, ("data", "train"): config.data.train}
    sets |= {("data", "eval", name): dataset for name, dataset in config.data.eval.items()}
    yield from ((path, component.options) for path, component in sets.items() if component is not None)


def _idle(options: Options, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    changed = _changed(options)
    for key, why in options.without_effect().items():
        if key in changed:
            yield (*path, key), f": {shown(changed[key])} has no effect: {why}"
    for key in type(options).model_fields:
        inner = getattr(options, key)
        if isinstance(inner, Options) and key != "model":
            yield from _idle(inner, (*path, key))


def _changed(options: BaseModel) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    fields = type(options).model_fields
    return {
        key: getattr(options, key)
        for key, field in fields.items()
        if not field.is_required() and getattr(options, key) != field.get_default(call_default_factory=True)
    }


def _unused_engines(config: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    """Engines that no module and no reward uses, and options of engines without effect."""
    used = {name for _, name in reward_engines(config)}
    used |= {
        module.options.engine for module in config.agent.modules.values() if isinstance(module.options, ModuleOptions)
    }
    for name, engine in config.engines.items():
        if isinstance(engine, OpenAIEngineConfig) and engine.tokenizer is not None:
            yield (
                ("engines", name, "tokenizer"),
                " has no effect: the policy's engine names the tokenizer of texts",
            )
        if name not in used and name != "judge":
            yield ("engines", name), " has no effect: no module and no reward names it as its `engine`"


def _model_behind_an_endpoint(config: RunConfig) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(config.engine, OpenAIEngineConfig):
        for key in _changed(config.model):
            if key in _LOCAL_MODEL_KEYS:
                instead = "; write engine.template_options" if key == "template_options" else ""
                yield (
                    ("model", key),
                    f" has no effect: the endpoint {config.engine.model!r} generates, not this model{instead}",
                )
