"""A module is a dialogue: a generator that yields what to ask and is sent the reply. `play` advances many at once.

The three interfaces of the paper are three ways to play one dialogue: `generate` (the model in training speaks, the
reward comes after the episode), `rollout` (the same, and the task-level reward is asked for when the module ends) and
`inference` (any engine speaks, nothing is trained).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, ClassVar, Literal

from memfactory.engines.base import Engine
from memfactory.registry import Options
from memfactory.types import Codec, Decoding, Episode, Message, Reply, Reward, Sampling, Turn

Interface = Literal["generate", "rollout", "inference"]
POLICY = "policy"


@dataclass(frozen=True)
class Ask:
    """What a dialogue wants said: the module step that asks, the conversation, the longest reply in tokens.

    `engine` and `trainable` are set by the interface the module is played through, not by the module.
    """

    step: str
    messages: tuple[Message, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    engine: str = POLICY
    trainable: bool = False


@dataclass(frozen=True)
class ScoreRequest:
    """A module played through `rollout` has ended: the environment's reward of the episode so far is wanted."""

    steps: tuple[str, ...]


Dialogue = Generator[Ask | ScoreRequest, Reply | Reward, None]
Asking = Generator[Ask, Reply, None]
Score = Callable[[Sequence[Episode]], list[Reward]]


class ModuleOptions(Options):
    """Options every module has."""

    interface: Interface = "generate"
    """How the module is played: generate or rollout (trained), inference (frozen)."""
    engine: str = POLICY
    """Which engine speaks under `interface: inference`: policy, or a name from `engines:`."""


class Module(ABC):
    """One skill of a memory agent, written for one episode as a generator. `steps` names what it asks for."""

    Options: ClassVar[type[ModuleOptions]] = ModuleOptions
    steps: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, codec: Codec) -> None:
        self.options = options
        self.codec = codec

    @abstractmethod
    def dialogue(self, episode: Episode) -> Asking:
        """Yield what to ask, receive the replies, leave the result in `episode`."""

    def generate(self, episode: Episode) -> Dialogue:
        """The model in training speaks; the reward is given once the whole episode has ended."""
        yield from _spoken(self.dialogue(episode), POLICY, trainable=True)

    def rollout(self, episode: Episode) -> Dialogue:
        """As `generate`, and the task-level reward at this module's end credits its steps."""
        yield from _spoken(self.dialogue(episode), POLICY, trainable=True)
        reward = yield ScoreRequest(self.steps)
        assert isinstance(reward, Reward)
        for step in self.steps:
            episode.step_rewards[step] = reward

    def inference(self, episode: Episode) -> Dialogue:
        """Any engine speaks; the transcript is kept and nothing is trained."""
        yield from _spoken(self.dialogue(episode), self.options.engine, trainable=False)

    def play(self, episode: Episode) -> Dialogue:
        """The interface that the options name."""
        interfaces = {"generate": self.generate, "rollout": self.rollout, "inference": self.inference}
        yield from interfaces[self.options.interface](episode)


class Agent(ABC):
    """A composition of modules. `slots` maps each slot to the name of its default module."""

    Options: ClassVar[type[Options]] = Options
    slots: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, modules: Mapping[str, Module]) -> None:
        self.options = options
        self.modules = modules

    @abstractmethod
    def dialogue(self, episode: Episode) -> Dialogue:
        """Play the modules over one episode (`yield from self.modules[slot].play(episode)`)."""


def _spoken(asking: Asking, engine: str, trainable: bool) -> Dialogue:
    """Stamp every ask of a module's dialogue with who speaks and whether it is trained."""
    try:
        ask = next(asking)
        while True:
            reply = yield replace(ask, engine=engine, trainable=trainable)
            assert isinstance(reply, Reply)
            ask = asking.send(reply)
    except StopIteration:
        return


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed from the names of a random stream; equal names give equal streams on every machine."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def play(
    agent: Agent,
    episodes: Sequence[Episode],
    engines: Mapping[str, Engine],
    *,
    decodings: Mapping[str, Decoding] | None = None,
    score: Score | None = None,
    frozen: bool = False,
    window: int | None = None,
    on_turn: Callable[[Episode, Turn], None] | None = None,
) -> Iterator[Episode]:
    """Play every episode to its end and yield each as it finishes; the slowest never holds up the others.

    An ask goes to its engine at once; whichever replies are ready are sent back into their dialogues. With `frozen`
    nothing is marked trainable (evaluation, inference), so an engine without token ids may speak as the policy.
    With `window` at most so many episodes are under way at one time, so the first end long before the last begin.
    `decodings` says how each engine's replies are drawn (default: the model's own distribution).
    `score` answers the requests of modules played through `rollout`; without it they are sent an unknown reward.
    `on_turn` is told of every finished turn, once the dialogue has taken it in. Errors of an engine and of a dialogue
    propagate, after the engines were told to forget their pending work.
    """
    dialogues = [agent.dialogue(episode) for episode in episodes]
    upcoming = deque(range(len(episodes)))
    waiting: dict[int, Ask] = {}

    def advance(index: int, value: Reply | Reward | None) -> bool:
        """Send `value` into dialogue `index` and submit what it asks next; True when it has ended."""
        try:
            wanted = next(dialogues[index]) if value is None else dialogues[index].send(value)
            while isinstance(wanted, ScoreRequest):
                reward = score([episodes[index]])[0] if score else Reward(None)
                wanted = dialogues[index].send(reward)
        except StopIteration:
            return True
        episode = episodes[index]
        seed = stream_seed(episode.seed, episode.member, len(episode.turns))
        decoding = (decodings or {}).get(wanted.engine, Decoding())
        sampling = Sampling(wanted.max_tokens, decoding, wanted.stop, seed)
        waiting[index] = wanted
        engines[wanted.engine].submit(index, wanted.messages, sampling)
        return False

    def receive(index: int, reply: Reply) -> bool:
        ask, episode = waiting.pop(index), episodes[index]
        turn = Turn(ask.step, ask.messages, reply, ask.trainable and not frozen)
        episode.turns.append(turn)
        ended = advance(index, reply)
        if on_turn:
            on_turn(episode, turn)
        return ended

    def admit() -> Iterator[Episode]:
        while upcoming and (window is None or len(waiting) < window):
            index = upcoming.popleft()
            if advance(index, None):
                yield episodes[index]

    try:
        yield from admit()
        while waiting:
            for key, reply in list(_ready(engines, {ask.engine for ask in waiting.values()})):
                if receive(key, reply):
                    yield episodes[key]
            yield from admit()
    finally:
        if waiting:
            for engine in set(engines.values()):
                engine.cancel()


def _ready(engines: Mapping[str, Engine], wanted: set[str]) -> Iterator[tuple[Any, Reply]]:
    """The replies that every engine with pending work has ready, each engine stepped once."""
    stepped: list[Engine] = []
    for name in sorted(wanted):
        engine = engines[name]
        if not any(engine is other for other in stepped):
            stepped.append(engine)
            yield from engine.step()
