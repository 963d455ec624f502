"""Plays an agent with replies that a rule writes instead of a model: conversations for supervised fine-tuning.

It does not know the rules: a module demonstrates its own steps (`Module.demonstrate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from memfactory.dialogue import Agent, Ask, Demonstration, Dialogue, Module, ScoreRequest, Shared
from memfactory.episode import Episode
from memfactory.errors import ConfigError, NoDemonstrationError, unknown
from memfactory.plugins.boundary import broken, guarded, short_repr
from memfactory.registry import MODULES
from memfactory.types import Message, Reply, Reward, Task, Turn


@dataclass(frozen=True)
class DemonstratedTurn:
    """A prompt of an agent and the reply that a rule wrote to it, with the task's id, the module's step and the kind of
    reply."""

    task: str
    step: str
    kind: str
    messages: tuple[Message, ...]
    reply: str

    def row(self) -> dict[str, object]:
        """The turn as a row for supervised fine-tuning."""
        messages = [*self.messages, Message("assistant", self.reply)]
        shown = [{"role": message.role, "content": message.content} for message in messages]
        return {"messages": shown, "step": self.step, "kind": self.kind, "task": self.task}


class Demonstrator:
    """Demonstrates an agent's steps over tasks. Raises ConfigError unless each of its modules that asks has a rule."""

    def __init__(self, agent: Agent[Any]) -> None:
        self.agent = agent
        self.owners: dict[str, Module[Any, Any]] = {}
        for slot, module in agent.modules.items():
            name = MODULES.name_of(type(module))
            if module.steps and not module.demonstrates:
                raise ConfigError(
                    f"agent.modules.{slot}: the module {name!r} has no rule that demonstrates its steps "
                    f"({', '.join(module.steps)}); modules that have one: {', '.join(modules_with_rules())}"
                )
            for step in module.steps:
                if step in self.owners:
                    raise ConfigError(f"agent.modules.{slot}: two modules of the agent have a step called {step!r}")
                self.owners[step] = module

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of replies that the agent's modules write."""
        return tuple(dict.fromkeys(kind for module in self.owners.values() for kind in module.demonstrates))

    def turns(self, task: Task) -> list[DemonstratedTurn]:
        """The turns of one episode. Raises NoDemonstrationError if a rule cannot tell."""
        turns: list[DemonstratedTurn] = []
        episode = Episode(task, frozen=True)
        components = [type(self.agent), *(type(module) for module in self.agent.modules.values())]
        with guarded(*components, doing=f"in demonstrating the task {task.id!r}"):
            self._play(episode, self.agent.dialogue(episode), turns)
        return turns

    def _play(self, episode: Episode, dialogue: Dialogue[Any], turns: list[DemonstratedTurn]) -> Any:
        value: object = None
        try:
            while True:
                request = dialogue.send(value)
                if isinstance(request, Ask):
                    value = self._reply(episode, request, turns)
                elif isinstance(request, ScoreRequest):
                    value = Reward(None)
                else:
                    value = self._shared(episode, request, turns)
        except StopIteration as end:
            return end.value
        finally:
            dialogue.close()

    def _reply(self, episode: Episode, ask: Ask, turns: list[DemonstratedTurn]) -> Reply:
        if ask.step not in self.owners:
            raise ConfigError(f"no module of the agent names the step {ask.step!r} among its steps")
        module = self.owners[ask.step]
        shown = module.demonstrate(episode, ask)
        if not isinstance(shown, Demonstration) or shown.kind not in module.demonstrates:
            kinds = ", ".join(module.demonstrates)
            hint = f"write Demonstration(reply, kind) with a kind of `demonstrates`: {kinds}"
            raise broken(type(module), "demonstrate", f"returned {short_repr(shown)}; {hint}")
        turns.append(DemonstratedTurn(episode.task.id, ask.step, shown.kind, ask.messages, shown.reply))
        reply = Reply(shown.reply, "stop")
        episode.turns.append(Turn(ask.step, ask.messages, reply, trainable=False, engine=ask.engine))
        return reply

    def _shared(self, episode: Episode, request: Shared[Any], turns: list[DemonstratedTurn]) -> Any:
        work = Episode(request.task, frozen=True)
        result = self._play(work, request.dialogue(work), turns)
        episode.share(work)
        return result


@dataclass(frozen=True)
class Demonstrations:
    """The turns of all tasks, and for each reason the ids of the tasks that were left out."""

    turns: tuple[DemonstratedTurn, ...]
    left_out: Mapping[str, tuple[str, ...]]

    @property
    def counts(self) -> dict[str, int]:
        """The number of turns of each kind."""
        return dict(Counter(turn.kind for turn in self.turns))

    def sampled(self, most: Mapping[str, int], seed: int) -> Demonstrations:
        """These demonstrations with at most `most` turns of each kind that it names, sampled by `seed`."""
        dropped: set[int] = set()
        for kind, number in most.items():
            places = [place for place, turn in enumerate(self.turns) if turn.kind == kind]
            surplus = max(len(places) - number, 0)
            dropped.update(Random(f"demonstrations {kind} {seed}").sample(places, surplus))
        return Demonstrations(
            tuple(turn for place, turn in enumerate(self.turns) if place not in dropped), self.left_out
        )


def demonstrations(demonstrator: Demonstrator, tasks: Sequence[Task]) -> Demonstrations:
    """The demonstrations of every task; a task for which a rule cannot tell is left out and counted."""
    turns: list[DemonstratedTurn] = []
    left_out: dict[str, list[str]] = {}
    for task in tasks:
        try:
            turns += demonstrator.turns(task)
        except NoDemonstrationError as error:
            left_out.setdefault(str(error), []).append(task.id)
    return Demonstrations(tuple(turns), {reason: tuple(ids) for reason, ids in left_out.items()})


def modules_with_rules() -> Iterator[str]:
    """The names of the registered modules that demonstrate their steps."""
    return (name for name in MODULES.names() if MODULES.get(name).demonstrates)


def checked_kinds(most: Mapping[str, int], kinds: Sequence[str]) -> Mapping[str, int]:
    """`most`, if it names only `kinds`. Raises ConfigError otherwise."""
    for kind in most:
        if kind not in kinds:
            raise ConfigError(unknown("kind of turn", kind, kinds))
    return most
