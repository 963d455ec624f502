"""How long a run's conversations get: its agent played over a few tasks with the longest replies, without a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

from memfactory.build import build_agent, build_env, build_tasks
from memfactory.components import POLICY
from memfactory.config import Resolved
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.formats.render import whole
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from memfactory.play import PlaySettings, Sampler, play
from memfactory.rollout import TextsRead, texts_read
from memfactory.types import Codec, Message, Sampling, Task

SAMPLED_TASKS = 16
SAMPLED_CHARACTERS = 8_000_000
"""Fewer tasks are played where their texts are longer than this together."""
_STAND_IN = re.compile(r"\[reply of (\d+) tokens\]")


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
        return _play_longest(resolved, codec, _sample(tasks))
    except MemFactoryError as error:
        problems.append(str(error))
        return None


def _codec(model: ModelConfig, warnings: list[str]) -> Codec:
    try:
        return load_chat(model)
    except ConfigError as error:
        warnings.append(f"tokens are counted with the tokenizer of `tiny`: {error}")
        return load_chat(ModelConfig())


def _sample(tasks: Sequence[Task]) -> list[Task]:
    """The first tasks, one at least, that can be played in little time."""
    ends = accumulate(len(whole(task)) for task in tasks[:SAMPLED_TASKS])
    return [task for task, end in zip(tasks, ends, strict=False) if task is tasks[0] or end <= SAMPLED_CHARACTERS]


def _stand_in(tokens: int) -> str:
    """What stands for a reply of so many tokens, whatever an agent puts it into: it takes no longer for longer ones."""
    return f"[reply of {tokens} tokens]"


def prompt_tokens(messages: Sequence[Message], codec: Codec) -> int:
    """The tokens of a prompt in which replies of the longest length are stood in for."""
    count = 0
    for message in messages:
        replies = [int(found) for found in _STAND_IN.findall(message.content)]
        count += len(codec.offsets(_STAND_IN.sub("", message.content))) + sum(replies) + 5
    return count


def _longest() -> ScriptedEngine:
    return ScriptedEngine(lambda messages, sampling: _stand_in(sampling.max_tokens))


def _play_longest(resolved: Resolved, codec: Codec, tasks: Sequence[Task]) -> Lengths:
    agent = build_agent(resolved.config.agent, codec)

    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        lengths.append((prompt_tokens(messages, codec), sampling.max_tokens))
        return _stand_in(sampling.max_tokens)

    lengths: list[tuple[int, int]] = []
    engines = dict.fromkeys([POLICY, *resolved.config.engines], ScriptedEngine(reply))
    episodes = [Episode(task) for task in tasks]
    for _ in play(Sampler(agent, engines), episodes, PlaySettings(frozen=True, keep_prompts=False)):
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
