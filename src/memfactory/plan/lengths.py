"""The lengths of a run's conversations: its agent plays a few tasks with the longest replies, without a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean

from memfactory.build import TrainingData, build_agent
from memfactory.components import POLICY
from memfactory.config import Resolved
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.errors import ConfigError
from memfactory.formats.render import render_task
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from memfactory.play import PlaySettings, Sampler, play
from memfactory.rollout import TextsRead, texts_read
from memfactory.types import Codec, Message, Sampling, Task

SAMPLED_TASKS = 16
SAMPLED_CHARACTERS = 8_000_000
"""The most characters of text in the sampled tasks together; longer texts mean fewer tasks."""
_STAND_IN = re.compile(r"\[reply of (\d+) tokens\]")


@dataclass(frozen=True)
class Lengths:
    """Turns per trajectory with the longest replies, and mean tokens of their prompts and replies.

    `longest` is the largest sum of both. `trained` are steps of modules, `frozen` modules with their engines. `texts`
    counts how much of the tasks' texts is read; `cut` warns if that is not all.
    """

    turns: float
    prompt: float
    reply: float
    longest: int
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    texts: TextsRead
    cut: str | None

    def rows(self) -> list[tuple[str, str]]:
        """The rows of a plan."""
        rows = [
            ("trained steps of modules", ", ".join(self.trained) or "none"),
            ("turns per trajectory", f"{self.turns:.1f}"),
            ("tokens per conversation", f"prompt {self.prompt:,.0f}, reply at most {self.reply:,.0f}"),
        ]
        if self.texts.texts:
            total = self.texts.read + self.texts.dropped
            left_out = f"{self.texts.dropped:,} of {total:,} tokens" if self.texts.cut else "nothing"
            rows.append((f"left out of the first {self.texts.texts} texts", left_out))
        if self.frozen:
            rows.append(("frozen modules", ", ".join(self.frozen)))
        return rows


def longest_lengths(resolved: Resolved, data: TrainingData, warnings: list[str]) -> Lengths:
    """Play the agent over the first training tasks with replies of the longest allowed length.

    Raises MemFactoryError if that is impossible.
    """
    return _play_longest(resolved, _codec(resolved.config.model, warnings), _sample(data.tasks()))


def _codec(model: ModelConfig, warnings: list[str]) -> Codec:
    try:
        return load_chat(model)
    except ConfigError as error:
        warnings.append(f"tokens are counted with the tokenizer of `tiny`: {error}")
        return load_chat(ModelConfig())


def _sample(tasks: Sequence[Task]) -> list[Task]:
    """The first tasks, at least one, that can be played within seconds."""
    ends = accumulate(len(render_task(task)) for task in tasks[:SAMPLED_TASKS])
    return [task for task, end in zip(tasks, ends, strict=False) if task is tasks[0] or end <= SAMPLED_CHARACTERS]


def _stand_in(tokens: int) -> str:
    """A short text in place of a reply of this length, in every prompt in which an agent inserts it."""
    return f"[reply of {tokens} tokens]"


def prompt_tokens(messages: Sequence[Message], codec: Codec) -> int:
    """The tokens of a prompt, counting stand-ins at the length of the replies they represent."""
    count = 0
    for message in messages:
        replies = [int(tokens) for tokens in _STAND_IN.findall(message.content)]
        count += len(codec.offsets(_STAND_IN.sub("", message.content))) + sum(replies) + 5
    return count


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
    frozen = [
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
        frozen=tuple(frozen),
    )
