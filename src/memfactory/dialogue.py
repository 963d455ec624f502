"""A module is a dialogue: a generator that yields a prompt, is sent the reply, and returns its result for ONE episode.

`play.py` plays the dialogues of many episodes at once. The three interfaces of the paper are three ways to play the
same dialogue: `generate` (the policy generates, the reward comes after the episode), `rollout` (the policy generates,
and the reward of the episode so far is requested when the module ends) and `inference` (any engine generates, nothing
is trained).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, cast

import numpy
from typing_extensions import TypeVar

from memfactory.components import POLICY, ModuleOptions
from memfactory.episode import Episode
from memfactory.errors import NoDemonstrationError
from memfactory.memory.bank import BankSource
from memfactory.plugins.boundary import broken, is_users
from memfactory.registry import Component, Options
from memfactory.types import Codec, Message, Reply, Reward, Task

ModuleT = TypeVar("ModuleT", bound=ModuleOptions, default=ModuleOptions, covariant=True)
AgentT = TypeVar("AgentT", bound=Options, default=Options, covariant=True)
ResultT = TypeVar("ResultT", default=Any)


@dataclass(frozen=True)
class Ask:
    """A request for one reply: the module step, the conversation, the longest reply in tokens.

    `engine` and `trainable` are set by the interface that the module is played through, not by the module.

    >>> Ask("answer", (Message("user", "Where does Anna live?"),), max_tokens=16).engine
    'policy'
    """

    step: str
    messages: tuple[Message, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    engine: str = POLICY
    trainable: bool = False


@dataclass(frozen=True)
class Demonstration:
    """A reply that a rule wrote to a request of a module, and its kind, such as `taken`, `same` or `answer`.

    >>> Demonstration("Anna's bus line is 204.", "taken").kind
    'taken'
    """

    reply: str
    kind: str


@dataclass(frozen=True)
class ScoreRequest:
    """A request for the environment's reward of the episode so far; a module played through `rollout` ends with it."""

    steps: tuple[str, ...]


@dataclass(frozen=True)
class Shared(Generic[ResultT]):
    """A request for the result of work that is the same for every episode with an equal `key` and trains nothing.

    `dialogue` is played once, over an episode of its own (of `task`), and every dialogue that requested it is sent the
    result. Frozen episodes share it with those of the same index only, so that avg@k has k independent samples.
    """

    key: str
    task: Task
    dialogue: Callable[[Episode], Dialogue[ResultT]]


Asking = Generator[Ask, Reply, ResultT]
"""A module's dialogue: it yields an Ask, is sent the Reply, and returns its result."""
Dialogue = Generator[Ask | ScoreRequest | Shared[Any], Any, ResultT]
"""A dialogue that is sent a Reply for an Ask, a Reward for a ScoreRequest, and the result for Shared work."""


class Module(Component[ModuleT], ABC, Generic[ModuleT, ResultT]):
    """One skill of a memory agent. `roles` names the slots that it fits, `steps` the requests that it makes.

    The roles of the shipped agents have base classes of their own in `roles.py`, such as `Extractor`; derive from
    Module itself for a role of your own. `dialogue` takes the episode and the inputs of the role:

        >>> class Critic(Module):
        ...     roles, steps = ("critic",), ("criticize",)
        ...
        ...     def dialogue(self, episode, draft):
        ...         prompt = f"Is {draft!r} the answer to {episode.task.question!r}?"
        ...         reply = yield Ask("criticize", (Message("user", prompt),), max_tokens=8)
        ...         return reply.text.startswith("yes")
    """

    Options: ClassVar[type[ModuleOptions]] = ModuleOptions
    steps: ClassVar[tuple[str, ...]] = ()
    roles: ClassVar[tuple[str, ...]] = ()
    learns_itself: ClassVar[bool] = False
    """Whether the module trains parameters of its own (see `LearningModule`)."""
    answers_last: ClassVar[bool] = False
    """Whether a reader starts from the text in `episode.memory`, rewrites it while reading and asks its last step once,
    for the answer."""
    demonstrates: ClassVar[tuple[str, ...]] = ()
    """The kinds of the replies that `demonstrate` writes; empty: the module has no such rule."""

    def __init__(self, options: ModuleT, codec: Codec) -> None:
        self.options = options
        self.codec = codec

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        bases = {(base.__module__, base.__name__) for base in cls.__mro__}
        for role in cls.roles:
            name = ROLE_CLASSES.get(role)
            if name is not None and ("memfactory.roles", name) not in bases:
                raise TypeError(f"a module with the role {role!r} derives from {name} of memfactory.roles")

    @abstractmethod
    def dialogue(self, episode: Episode, *inputs: Any, **named: Any) -> Asking[ResultT]:
        """Yield each request, receive its reply, return the result. The role decides the inputs and the result."""

    def demonstrate(self, episode: Episode, ask: Ask) -> Demonstration:
        """The reply that a rule writes to `ask`, from the gold answers and evidence of the task, for supervised
        fine-tuning. `episode` holds the memory and the turns before. A module with such a rule names its kinds of
        replies in `demonstrates`. Raises NoDemonstrationError if the rule cannot tell."""
        raise NoDemonstrationError(f"{type(self).__name__} has no rule that demonstrates its steps")

    def checked(self, result: Any) -> ResultT:
        """The result of `dialogue`. A role raises PluginError for another result than its own."""
        return cast("ResultT", result)

    def record(self, episode: Episode, result: ResultT) -> None:
        """Write the result into the episode as far as rewards and records read it. A role of your own records nothing
        unless this is overridden."""

    def generate(self, episode: Episode, *inputs: Any) -> Dialogue[ResultT]:
        """The policy generates; the reward is given after the whole episode."""
        return (yield from self._played(episode, inputs, POLICY, trainable=True))

    def rollout(self, episode: Episode, *inputs: Any) -> Dialogue[ResultT]:
        """As `generate`; the reward of the episode at the end of this module credits the module's steps."""
        result = yield from self._played(episode, inputs, POLICY, trainable=True)
        reward: Reward = yield ScoreRequest(self.steps)
        episode.step_rewards.update(dict.fromkeys(self.steps, reward))
        return result

    def inference(self, episode: Episode, *inputs: Any) -> Dialogue[ResultT]:
        """Any engine generates; the transcript is kept and nothing is trained."""
        return (yield from self._played(episode, inputs, self.options.engine, trainable=False))

    def play(self, episode: Episode, *inputs: Any) -> Dialogue[ResultT]:
        """Play the dialogue through the interface of the options: `result = yield from module.play(episode, ...)`."""
        interfaces = {"generate": self.generate, "rollout": self.rollout, "inference": self.inference}
        return (yield from interfaces[self.options.interface](episode, *inputs))

    def _played(self, episode: Episode, inputs: tuple[Any, ...], engine: str, *, trainable: bool) -> Dialogue[ResultT]:
        """Play the dialogue with every request addressed to `engine`; check and record its result."""
        component = type(self)
        asking = _started(self, episode, inputs)
        try:
            ask = next(asking)
            while True:
                reply: Reply = yield replace(_well_formed(component, ask), engine=engine, trainable=trainable)
                ask = asking.send(reply)
        except StopIteration as end:
            result = self.checked(end.value)
            self.record(episode, result)
            check_texts(component, episode)
            return result
        finally:
            close(component, asking)


ROLE_CLASSES: Mapping[str, str] = {
    "reader": "Reader",
    "extractor": "Extractor",
    "updater": "Updater",
    "retriever": "Retriever",
    "answerer": "Answerer",
}
"""The roles of the shipped agents and the base classes, in roles.py, that fix their inputs and results."""


class LearningModule(Module[ModuleT, ResultT]):
    """A module with parameters of its own that learn from finished episodes, not through the language model.

    While `learning` is True it explores and notes in the episode the values that `learn` needs. Its options have
    `weights`: the .safetensors file of an earlier `state` (None: new parameters).

    >>> class Threshold(LearningModule):
    ...     value = 0.5
    ...
    ...     def dialogue(self, episode):
    ...         yield from ()
    ...
    ...     def learn(self, episodes):
    ...         self.value += 0.1 * len(episodes)
    ...         return {"threshold": self.value}
    ...
    ...     def state(self):
    ...         return {"value": numpy.array(self.value)}
    ...
    ...     def load_state(self, state):
    ...         self.value = float(state["value"])
    >>> Threshold(ModuleOptions(), None).learn([])
    {'threshold': 0.5}
    """

    learns_itself: ClassVar[bool] = True
    learning: bool = False

    @abstractmethod
    def learn(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Take one step from finished episodes that were played while `learning`; returns metrics."""

    @abstractmethod
    def state(self) -> dict[str, numpy.ndarray]:
        """All parameters by name; empty before the first episode."""

    @abstractmethod
    def load_state(self, state: Mapping[str, numpy.ndarray]) -> None:
        """Restore the parameters that `state` returned."""


class Agent(Component[AgentT], ABC):
    """A composition of modules. `slots` maps each slot to the name of its default module.

    A module fits a slot if it has the role that `needs` names for the slot; a slot that is not in `needs` takes every
    module with the roles of its default module. An agent with a memory bank sets `keeps_bank`, opens the bank by
    `self.banks.open(episode.task.memory)` and leaves it in `episode.bank`.

        >>> from memfactory.engines.scripted import ScriptedEngine
        >>> from memfactory.play import Sampler, play
        >>> from memfactory.roles import Reader
        >>> class Guess(Reader):
        ...     steps = ("guess",)
        ...
        ...     def dialogue(self, episode):
        ...         reply = yield Ask("guess", (Message("user", episode.task.question),), max_tokens=8)
        ...         return self.answer(reply.text)
        >>> class Guesser(Agent):
        ...     slots = {"reader": "guess"}
        ...
        ...     def dialogue(self, episode):
        ...         answer = yield from self.modules["reader"].play(episode)
        ...         if answer.text is None:
        ...             yield from self.modules["reader"].play(episode)
        >>> agent = Guesser(Options(), {"reader": Guess(ModuleOptions(), codec=None)})
        >>> engine = ScriptedEngine(lambda messages, sampling: "Oslo")
        >>> episodes = [Episode(Task("1", "Where does Ada live?", answers=("Oslo",)))]
        >>> [(episode.answer, len(episode.turns)) for episode in play(Sampler(agent, {"policy": engine}), episodes)]
        [('Oslo', 1)]
    """

    Options: ClassVar[type[Options]] = Options
    slots: ClassVar[Mapping[str, str]] = {}
    keeps_bank: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: AgentT, modules: Mapping[str, Module[Any]], banks: BankSource | None = None) -> None:
        self.options = options
        self.modules = modules
        self.banks = banks or BankSource()

    @property
    def options_by_slot(self) -> dict[str, Any]:
        """The options of each slot's module."""
        return {slot: module.options for slot, module in self.modules.items()}

    @abstractmethod
    def dialogue(self, episode: Episode) -> Dialogue[Any]:
        """Play the modules over one episode: `result = yield from self.modules[slot].play(episode, ...)`."""

    def read(self, episode: Episode) -> Dialogue[Any] | None:
        """Read the task's text into `episode.bank` or `episode.memory` and answer nothing.

        None: the agent reads only while it answers.
        """
        return None


def close(component: type, dialogue: Generator[Any, Any, Any]) -> None:
    """Close a dialogue that is not played to its end. Raises PluginError if it yields once more."""
    try:
        dialogue.close()
    except RuntimeError as error:
        if str(error) != "generator ignored GeneratorExit":
            raise
        raise broken(component, "dialogue", "yielded again after it was closed; do not yield in `finally`") from None


def check_texts(component: type, episode: Episode) -> None:
    """Raise PluginError if a dialogue of `component` left anything but text in the text fields of `episode`."""
    for name in ("answer", "answer_text", "memory"):
        value = cast("object", getattr(episode, name))
        if not isinstance(value, str) and (value is not None or name == "memory"):
            raise broken(component, "dialogue", f"left {value!r:.60} as the episode's `{name}`, which must be text")


def as_generator(component: type, dialogue: Any) -> Any:
    """The value that a `dialogue` method returned. Raises PluginError unless it is a generator."""
    if isinstance(dialogue, Generator):
        return dialogue
    hint = "it never yields; a dialogue without requests has the line `yield from ()`"
    raise broken(component, "dialogue", f"returned {type(dialogue).__name__}, not a generator: {hint}")


def _started(module: Module[Any], episode: Episode, inputs: tuple[Any, ...]) -> Any:
    """The generator of a module's dialogue. Raises PluginError if `dialogue` does not take these inputs."""
    try:
        return as_generator(type(module), module.dialogue(episode, *inputs))
    except TypeError:
        signature = inspect.signature(module.dialogue)
        try:
            signature.bind(episode, *inputs)
        except TypeError:
            names = ", ".join(type(value).__name__ for value in inputs) or "nothing"
            shape = f"takes ({', '.join(signature.parameters)})"
            raise broken(type(module), "dialogue", f"{shape}, but its slot gives the episode and {names}") from None
        raise


def _well_formed(module: type, ask: Any) -> Ask:
    """The value that a module's dialogue yielded. Raises PluginError unless it is an Ask of messages."""
    example = 'write `reply = yield Ask("step", (Message("user", prompt),), max_tokens)`'
    if not isinstance(ask, Ask):
        raise broken(module, "dialogue", f"yielded {type(ask).__name__}, not an Ask; {example}")
    messages, stop, mistake = ask.messages, cast("object", ask.stop), None
    if not isinstance(messages, tuple | list) or not messages:
        mistake = f"messages must be a tuple of Message, not {messages!r:.60}"
    elif foreign := [message for message in messages if not isinstance(message, Message)]:
        mistake = f"messages hold {type(foreign[0]).__name__}, not Message"
    elif any(not isinstance(message.content, str) for message in messages):
        mistake = "the content of a message must be text"
    elif isinstance(ask.max_tokens, bool) or not isinstance(ask.max_tokens, int) or ask.max_tokens < 1:
        mistake = f"max_tokens must be a whole number above 0, not {ask.max_tokens!r:.60}"
    elif not isinstance(ask.step, str) or not ask.step:
        mistake = f"step must be a name, not {ask.step!r:.60}"
    elif not isinstance(stop, tuple | list) or not all(isinstance(text, str) for text in stop):
        mistake = f"stop must be a tuple of texts, not {ask.stop!r:.60}"
    if mistake is not None:
        raise broken(module, "dialogue", f"yielded an invalid Ask: {mistake}; {example}")
    if is_users(module) and (surrogate := _half_character(messages)) is not None:
        raise broken(module, "dialogue", f"yielded an invalid Ask: a message holds {surrogate}")
    return ask if isinstance(messages, tuple) else replace(ask, messages=tuple(messages))


def _half_character(messages: Sequence[Message]) -> str | None:
    """The place of half a surrogate pair, which no tokenizer takes, in a message; None without one."""
    for message in messages:
        try:
            message.content.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"half of a surrogate pair as character {error.start}"
    return None
