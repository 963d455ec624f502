"""How long a run's conversations get: its agent played over a few tasks with the longest replies, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from memfactory.build import build_agent, build_env, build_tasks
from memfactory.config import Resolved
from memfactory.dialogue import POLICY, play
from memfactory.engines.loading import load_chat
from memfactory.engines.options import ModelConfig
from memfactory.engines.scripted import ScriptedEngine
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.rollout import TextsRead, texts_read
from memfactory.types import Codec, Episode, Message, Sampling, Task

SAMPLED_TASKS = 16


@dataclass(frozen=True)
class Lengths:
    """Turns of one trajectory at the longest replies: (prompt tokens, reply tokens) of each, averaged over tasks.

    `texts` says how much of the tasks' texts is read, `cut` what there is to be said of it.
    """

    turns: float
    prompt: float
    reply: float
    longest: int
    trained: tuple[str, ...]
    helpers: tuple[str, ...]
    texts: TextsRead
    cut: str | None


def longest_lengths(resolved: Resolved, problems: list[str], warnings: list[str]) -> Lengths | None:
    """Play the agent over the first training tasks with replies of the longest allowed length.

    None where that cannot be done; why is added to `problems`.
    """
    config = resolved.config
    try:
        codec = _codec(config.model, warnings)
        env = build_env(config.env, {name: _longest() for name in config.engines})
        if config.data.train is None:
            raise ConfigError("data.train: no training data is named")
        tasks = build_tasks(config.data.train, env, resolved.base_dir).tasks
        return _play_longest(resolved, codec, tasks[:SAMPLED_TASKS])
    except MemFactoryError as error:
        problems.append(str(error))
        return None


def _codec(model: ModelConfig, warnings: list[str]) -> Codec:
    try:
        return load_chat(model)
    except ConfigError as error:
        warnings.append(f"tokens are counted with the tokenizer of `tiny`: {error}")
        return load_chat(ModelConfig())


def _longest() -> ScriptedEngine:
    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        return " word" * sampling.max_tokens

    return ScriptedEngine(reply)


def _play_longest(resolved: Resolved, codec: Codec, tasks: Sequence[Task]) -> Lengths:
    agent = build_agent(resolved.config.agent, codec)

    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        prompt = sum(len(codec.offsets(message.content)) + 5 for message in messages)
        lengths.append((prompt, sampling.max_tokens))
        return " word" * sampling.max_tokens

    lengths: list[tuple[int, int]] = []
    engines = dict.fromkeys([POLICY, *resolved.config.engines], ScriptedEngine(reply))
    episodes = [Episode(task) for task in tasks]
    for _ in play(agent, episodes, engines, frozen=True):
        pass
    trained = [
        step
        for slot, module in agent.modules.items()
        if module.options.interface != "inference"
        for step in module.steps
    ]
    helpers = [
        f"{slot} ({module.options.engine})"
        for slot, module in agent.modules.items()
        if module.options.interface == "inference"
    ]
    texts = texts_read({episode.task.id: episode.reading for episode in episodes})
    return Lengths(
        texts=texts,
        cut=texts.warning(agent.options_by_slot),
        turns=len(lengths) / len(episodes),
        prompt=fmean(prompt for prompt, _ in lengths),
        reply=fmean(longest for _, longest in lengths),
        longest=max(prompt + longest for prompt, longest in lengths),
        trained=tuple(trained),
        helpers=tuple(helpers),
    )
