"""Config to live objects: the only place where agents, environments, engines and policies are made."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memfactory.components import POLICY
from memfactory.config import Resolved
from memfactory.config.answer_forms import options_of_reward
from memfactory.config.schema import AgentSpec, Component, DataConfig, RunConfig
from memfactory.config.trained import trainer_options
from memfactory.config.training import TrainerOptions
from memfactory.dialogue import Agent, Module
from memfactory.engines.addresses import named_address
from memfactory.engines.base import Engine
from memfactory.engines.cached import CachedEngine
from memfactory.engines.options import (
    AutoEngineConfig,
    EngineConfig,
    HfEngineConfig,
    OpenAIEngineConfig,
    VllmEngineConfig,
    VllmServerConfig,
    same_engine,
)
from memfactory.engines.replies import ReplyStore
from memfactory.environment import process_count
from memfactory.envs.base import Environment, RewardFunction, TaskSet
from memfactory.errors import ConfigError
from memfactory.files.checkpoints import TRAINING_ONLY
from memfactory.files.folders import check_folder
from memfactory.files.places import expanded
from memfactory.memory.bank import BankSource
from memfactory.model.model_files import weights_fingerprint
from memfactory.model.options import ModelConfig
from memfactory.play import Sampler
from memfactory.plugins.boundary import made
from memfactory.registry import AGENTS, DATASETS, ENVS, MODULES, REWARDS
from memfactory.types import Codec, Role, SamplingParams, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memfactory.model.chat import ChatFormat

log = logging.getLogger("memfactory")


class TaskReader:
    """Reads each dataset of a run once: equal options and an equal environment give the same tasks again.

    Rewards do not affect reading, so an environment without rewards can read before any engine exists.
    """

    def __init__(self) -> None:
        self._read: dict[tuple[str, ...], TaskSet] = {}

    def read(self, component: Component, env: Environment, base_dir: Path) -> TaskSet:
        """The tasks of a configured dataset, with a message for every row that was left out."""
        reads = env.options.model_dump_json(exclude={"rewards", "steps"})
        key = (component.name, component.options.model_dump_json(), ENVS.name_of(type(env)), reads, str(base_dir))
        if key not in self._read:
            self._read[key] = build_tasks(component, env, base_dir)
        return self._read[key]

    def tasks(self, component: Component, env: Environment, base_dir: Path) -> tuple[Task, ...]:
        """The tasks of a configured dataset. A warning counts the rows that were left out and quotes the first."""
        tasks = self.read(component, env, base_dir)
        if tasks.skipped:
            examples = "\n  ".join(tasks.skipped[:3])
            log.warning("%d rows of %s were left out; the first:\n  %s", len(tasks.skipped), tasks.source, examples)
        for note in tasks.notes:
            log.warning("%s: %s", tasks.source, note)
        return tasks.tasks


@dataclass(frozen=True)
class TrainingData:
    """The configured training data with everything that reading it needs; no weights are loaded."""

    data: DataConfig
    env: Environment
    model: ModelConfig
    seed: int
    base_dir: Path
    reader: TaskReader = field(default_factory=TaskReader)

    def tasks(self) -> tuple[Task, ...]:
        """The tasks of `data.train`, as the environment reads them. Raises ConfigError without any."""
        if self.data.train is None:
            raise ConfigError("data.train: this trainer needs training tasks, but no dataset is named")
        return self.reader.tasks(self.data.train, self.env, self.base_dir)


def training_data(resolved: Resolved, reader: TaskReader | None = None) -> TrainingData:
    """The training data of a run's config."""
    config = resolved.config
    env = reading_env(resolved)
    return TrainingData(config.data, env, config.model, config.seed, resolved.base_dir, reader or TaskReader())


@dataclass(frozen=True)
class Runtime:
    """The live objects that episodes are played with, in training, evaluation and inference.

    `sampling_params` holds the parameters of every engine but the policy's. `model` and `chat` are None if an API
    generates as the policy. `seed` is the run's.
    """

    agent: Agent
    env: Environment
    engines: Mapping[str, Engine]
    sampling_params: Mapping[str, SamplingParams]
    codec: Codec
    model: PreTrainedModel | None = None
    chat: ChatFormat | None = None
    seed: int = 0

    def sampler(self, policy: SamplingParams) -> Sampler:
        """The agent over the engines; the policy samples with `policy`, every other engine as its config says."""
        return Sampler(self.agent, self.engines, {**self.sampling_params, POLICY: policy})

    def with_agent(self, spec: AgentSpec) -> Runtime:
        """This runtime with another agent."""
        return replace(self, agent=build_agent(spec, self.codec, self.agent.banks))

    @property
    def frame(self) -> Callable[[Sequence[Role]], str] | None:
        """Maps roles of messages to the text that the policy's chat template puts around them; None with an API."""
        return None if self.chat is None else self.chat.frame

    def close(self) -> None:
        """Close every engine."""
        for engine in self.engines.values():
            engine.close()


def build_runtime(resolved: Resolved, *, training: bool, replies: ReplyStore | None = None) -> Runtime:
    """Build everything that a run's config names, with its model loaded.

    `replies` caches the greedy replies of every engine whose weights are fixed, so the policy's too unless it is in
    `training`. Raises ConfigError if the parts do not fit, such as training on an engine that returns no token ids.
    """
    config = resolved.config
    check_model_folders(config)
    model: PreTrainedModel | None = None
    chat: ChatFormat | None = None
    codec: Codec
    if isinstance(config.engine, OpenAIEngineConfig):
        if training:
            raise ConfigError(
                "engine: kind 'openai' gives no token ids, so it cannot be trained through; use kind hf or vllm"
            )
        from memfactory.model.codec import FileCodec

        codec = FileCodec(config.engine.tokenizer or config.model.path)
    else:
        from memfactory.model.loading import load_chat, load_model

        codec = chat = load_chat(config.model)
        if training or isinstance(config.engine, HfEngineConfig):
            options = trainer_options(config)
            trained = options.policy if training and options is not None else None
            trained = trained or TrainerOptions()
            model = load_model(
                config.model,
                training=training,
                frozen_base=trained.lora is not None,
                masters=trained.masters,
                # Whole it need not fit the device that takes a part of it.
                on_host=trained.shard != "none" and process_count() > 1,
            )
    engines = build_engines(config, model, chat, replies, policy_stays=replies is not None and not training)
    agent = build_agent(config.agent, codec, BankSource(config.memory))
    env = build_env(config.env, engines)
    return Runtime(agent, env, engines, _sampling_params(config), codec, model, chat, config.seed)


def check_model_folders(config: RunConfig) -> None:
    """Raise MemFactoryError if weights that a run wrote are damaged."""
    models = [engine.model for engine in config.engines.values() if isinstance(engine, HfEngineConfig)]
    if not isinstance(config.engine, OpenAIEngineConfig):
        models.append(config.model)
    places = [place for model in models if model is not None for place in (model.path, model.adapter)]
    folders = [expanded(place) for place in places if place is not None]
    learnt = [getattr(module.options, "weights", None) for module in config.agent.modules.values()]
    folders += [expanded(weights).parent.parent for weights in learnt if weights is not None]
    for folder in dict.fromkeys(folders):
        check_folder(folder, ignore=TRAINING_ONLY)


def build_agent(spec: AgentSpec, codec: Codec, banks: BankSource | None = None) -> Agent:
    """The agent with a module in each of its slots, its memory banks opened by `banks`."""
    modules: dict[str, Module] = {
        slot: made(MODULES, module.name, module.options, codec) for slot, module in spec.modules.items()
    }
    agent: Agent = made(AGENTS, spec.name, spec.options, modules, banks)
    return agent


def build_env(component: Component, engines: Mapping[str, Engine]) -> Environment:
    """The environment with its rewards."""
    rewards = build_rewards(getattr(component.options, "rewards", {}), engines)
    env: Environment = made(ENVS, component.name, component.options, rewards)
    return env


def reading_env(resolved: Resolved) -> Environment:
    """The environment for reading rows: without rewards, and so without engines."""
    env = resolved.config.env
    return build_env(replace(env, options=env.options.model_copy(update={"rewards": {}})), {})


def build_rewards(
    entries: Mapping[str, float | dict[str, object]], engines: Mapping[str, Engine]
) -> list[RewardFunction]:
    """Reward functions by name; an entry is a weight or that reward's options."""
    return [made(REWARDS, name, options_of_reward(name, entry), engines) for name, entry in entries.items()]


def build_tasks(component: Component, env: Environment, base_dir: Path) -> TaskSet:
    """The tasks of a configured dataset, read by the environment."""
    return env.tasks(made(DATASETS, component.name, component.options, base_dir))


def build_engines(
    config: RunConfig,
    model: PreTrainedModel | None,
    chat: ChatFormat | None,
    replies: ReplyStore | None = None,
    *,
    policy_stays: bool = False,
) -> dict[str, Engine]:
    """The policy's engine under "policy", and the other engines by their names.

    Settings that differ only in sampling parameters share one engine. `replies` caches the greedy replies of engines
    with fixed weights, and the policy's if `policy_stays`.
    """
    store = ReplyStore() if replies is None else replies
    policy = _engine(config.engine, config, model, chat)
    policy = CachedEngine(policy, store, engine_name(config.engine, config)) if policy_stays else policy
    built: list[tuple[EngineConfig, Engine]] = [(config.engine, policy)]
    engines = {POLICY: policy}
    for name, settings in config.engines.items():
        engine = next((engine for built_from, engine in built if same_engine(settings, built_from)), None)
        if engine is None:
            engine = _engine(settings, config, model, chat)
            constant = policy_stays or _is_constant(settings)
            engine = CachedEngine(engine, store, engine_name(settings, config)) if constant else engine
            built.append((settings, engine))
        engines[name] = engine
    return engines


def engine_name(settings: EngineConfig, config: RunConfig) -> str:
    """The identity of an engine in the cache of replies: its settings, and its address or its weights.

    A run may be resumed after the files of a model, or the address in the environment, have changed.
    """
    if isinstance(settings, OpenAIEngineConfig):
        return f"{settings.model_dump_json()} {named_address(settings.base_url)}"
    own_model = settings.model if isinstance(settings, HfEngineConfig) else None
    model = own_model or config.model
    return f"{settings.model_dump_json()} {model.model_dump_json()} {json.dumps(weights_fingerprint(model))}"


def _is_constant(settings: EngineConfig) -> bool:
    """Whether training leaves the engine's weights as they are: it does not use the policy's."""
    return isinstance(settings, OpenAIEngineConfig) or (
        isinstance(settings, HfEngineConfig) and settings.model is not None
    )


def _engine(
    settings: EngineConfig, config: RunConfig, model: PreTrainedModel | None, chat: ChatFormat | None
) -> Engine:
    if isinstance(settings, OpenAIEngineConfig):
        from memfactory.engines.openai import OpenAIEngine

        return OpenAIEngine(settings)
    if isinstance(settings, HfEngineConfig) and settings.model is not None:
        from memfactory.model.loading import load_chat, load_model

        model, chat = load_model(settings.model, training=False), load_chat(settings.model)
        return _hf_engine(settings, settings.model, model.requires_grad_(False), chat)
    if chat is None:
        raise ConfigError(f"engine: kind {settings.kind!r} needs a local model, but the policy is an endpoint")
    if isinstance(settings, VllmEngineConfig):
        from memfactory.engines.vllm.engine import VllmEngine

        return VllmEngine(config.model, chat, settings, rank=_adapter_rank(config, model))
    if isinstance(settings, VllmServerConfig):
        from memfactory.engines.vllm.server import VllmServerEngine

        return VllmServerEngine(config.model, chat, settings)
    if isinstance(settings, AutoEngineConfig):
        raise ValueError("load_config replaces an engine of kind 'auto' by the one that it stands for")
    if model is None:
        raise ConfigError("engine: kind 'hf' under `engines` needs a `model` of its own, or a local policy")
    return _hf_engine(settings, config.model, model, chat)


def _hf_engine(settings: HfEngineConfig, described: ModelConfig, model: PreTrainedModel, chat: ChatFormat) -> Engine:
    from memfactory.engines.hf.engine import HfEngine
    from memfactory.model.loading import compute_dtype, resolve_device

    return HfEngine(model, chat, settings, compute_dtype=compute_dtype(described, resolve_device(described.device)))


def _adapter_rank(config: RunConfig, model: PreTrainedModel | None) -> int | None:
    """The rank of the adapter in training; None without an adapter."""
    if model is None:
        return None
    from peft import PeftModel

    if isinstance(model, PeftModel):
        # Adapters of other kinds have no rank.
        return max((int(getattr(adapter, "r", 0)) for adapter in model.peft_config.values()), default=0) or None
    options = trainer_options(config)
    trained = None if options is None else options.policy
    return None if trained is None or trained.lora is None else trained.lora.rank


def _sampling_params(config: RunConfig) -> dict[str, SamplingParams]:
    return {name: SamplingParams(settings.temperature, settings.top_p) for name, settings in config.engines.items()}
