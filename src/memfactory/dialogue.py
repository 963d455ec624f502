"""A module is a dialogue: a generator that yields what to ask and is sent the reply. play.py plays many at once.

The three interfaces of the paper are three ways to play one dialogue: `generate` (the model in training speaks, the
reward comes after the episode), `rollout` (the same, and the task-level reward is asked for when the module ends) and
`inference` (any engine speaks, nothing is trained).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy

from memfactory.components import POLICY, ModuleOptions
from memfactory.episode import Episode
from memfactory.formats.answers import bare_answer, form_asked_for
from memfactory.memory.bank import BankSource
from memfactory.plugins.boundary import broken, is_users
from memfactory.registry import Options
from memfactory.types import AnswerForm, Codec, Message, Reply, Reward, Task


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


@dataclass(frozen=True)
class Shared:
    """Work that every episode under an equal `key` needs alike, and in which nothing is trained.

    `dialogue` is played once over an episode of its own (on `task`), which each of those who asked is sent once it has
    ended. Attempts that are frozen share it with those of the same number only, so that avg@k has k draws of it.
    """

    key: str
    task: Task
    dialogue: Callable[[Episode], Dialogue]


Dialogue = Generator[Ask | ScoreRequest | Shared, Reply | Reward | Episode, None]
Asking = Generator[Ask, Reply, None]


class Module(ABC):
    """One skill of a memory agent, written for one episode as a generator. `steps` names what it asks for.

    `roles` names the parts that it can play in an agent. Those of the shipped agents are

    - reader: reads the task's text and leaves `answer`;
    - extractor: reads `heard` and leaves `candidates`;
    - updater: takes `candidates` and changes `bank`;
    - retriever: searches `bank` for the question and leaves `retrieved`;
    - answerer: answers from `retrieved` and leaves `answer`.
    """

    Options: ClassVar[type[ModuleOptions]] = ModuleOptions
    steps: ClassVar[tuple[str, ...]] = ()
    roles: ClassVar[tuple[str, ...]] = ()
    learns_itself: ClassVar[bool] = False
    """Whether the module has parameters of its own that it trains (see `LearningModule`)."""
    answers_last: ClassVar[bool] = False
    """Whether a reader starts from the text in `episode.memory`, rewrites it while reading and asks its last step once,
    for the answer."""

    def __init__(self, options: Any, codec: Codec) -> None:
        self.options = options
        self.codec = codec

    @abstractmethod
    def dialogue(self, episode: Episode) -> Asking:
        """Yield what to ask, receive the replies, leave the result in `episode`."""

    def give_answer(self, episode: Episode, text: str | None) -> None:
        """Leave in `episode` the answer that `text` holds in the form that was asked for; None: there is none."""
        form: AnswerForm = self.options.asked_form or "plain"
        episode.answer = None if text is None else bare_answer(text, form)
        episode.answer_text, episode.answer_form = text, form

    def generate(self, episode: Episode) -> Dialogue:
        """The model in training speaks; the reward is given once the whole episode has ended."""
        yield from _spoken(self, episode, POLICY, trainable=True)

    def rollout(self, episode: Episode) -> Dialogue:
        """As `generate`, and the task-level reward at this module's end credits its steps."""
        yield from _spoken(self, episode, POLICY, trainable=True)
        reward = yield ScoreRequest(self.steps)
        assert isinstance(reward, Reward)
        for step in self.steps:
            episode.step_rewards[step] = reward

    def inference(self, episode: Episode) -> Dialogue:
        """Any engine speaks; the transcript is kept and nothing is trained."""
        yield from _spoken(self, episode, self.options.engine, trainable=False)

    def play(self, episode: Episode) -> Dialogue:
        """The interface that the options name."""
        interfaces = {"generate": self.generate, "rollout": self.rollout, "inference": self.inference}
        yield from interfaces[self.options.interface](episode)


class LearningModule(Module):
    """A module with parameters of its own, which learn from how attempts went and not through the language model.

    While `learning` is set it explores and notes in the episode what `learn` needs. Its options have `weights`, the
    .safetensors that holds an earlier `state` (None: it starts anew).
    """

    learns_itself: ClassVar[bool] = True
    learning: bool = False

    @abstractmethod
    def learn(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Learn from attempts that have ended, in which this module was learning; what was measured."""

    @abstractmethod
    def state(self) -> dict[str, numpy.ndarray]:
        """All that it has learnt, by name; empty before the first attempt."""

    @abstractmethod
    def load_state(self, state: Mapping[str, numpy.ndarray]) -> None:
        """Go back to what `state` gave."""


class Agent(ABC):
    """A composition of modules. `slots` maps each slot to the name of its default module.

    A module fits a slot where it has the role that `needs` names for the slot; a slot that is not in `needs` takes what
    has every role of its default module.

    An agent that works on a memory bank (`keeps_bank`) begins it with the task's items, taken from `banks`, and leaves
    it in `episode.bank`.
    """

    Options: ClassVar[type[Options]] = Options
    slots: ClassVar[Mapping[str, str]] = {}
    keeps_bank: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any, modules: Mapping[str, Module], banks: BankSource | None = None) -> None:
        self.options = options
        self.modules = modules
        self.banks = banks or BankSource()

    @property
    def options_by_slot(self) -> dict[str, Any]:
        """The options of each slot's module."""
        return {slot: module.options for slot, module in self.modules.items()}

    @abstractmethod
    def dialogue(self, episode: Episode) -> Dialogue:
        """Play the modules over one episode (`yield from self.modules[slot].play(episode)`)."""

    def read(self, episode: Episode) -> Dialogue | None:
        """Read the task's text into `episode.bank` or `episode.memory` and answer nothing.

        None: the agent reads only while it answers.
        """
        return None


def _spoken(module: Module, episode: Episode, engine: str, trainable: bool) -> Dialogue:
    """Stamp every ask of a module's dialogue with who speaks and whether it is trained."""
    asking = as_generator(module, module.dialogue(episode))
    try:
        ask = next(asking)
        while True:
            reply = yield replace(_well_formed(type(module), ask), engine=engine, trainable=trainable)
            assert isinstance(reply, Reply)
            ask = asking.send(reply)
    except StopIteration:
        check_left(type(module), episode)
    finally:
        close(type(module), asking)


def close(component: type, dialogue: Generator[Any, Any, Any]) -> None:
    """End a dialogue that is not played on. Raises PluginError where it goes on asking."""
    try:
        dialogue.close()
    except RuntimeError as error:
        if str(error) != "generator ignored GeneratorExit":
            raise
        raise broken(
            component, "dialogue", "yielded once more when it was ended; ask for nothing in `finally`"
        ) from None


def check_left(component: type, episode: Episode) -> None:
    """Raise PluginError where a dialogue of `component` that has ended left in `episode` what is no text."""
    for name in ("answer", "answer_text", "memory"):
        value = cast("object", getattr(episode, name))
        if not isinstance(value, str) and (value is not None or name == "memory"):
            raise broken(component, "dialogue", f"left {value!r:.60} as the episode's `{name}`, which must be text")


def as_generator(component: Module | Agent, dialogue: Any) -> Any:
    """What `dialogue` returned, which must be a generator."""
    if isinstance(dialogue, Generator):
        return dialogue
    hint = "it never yields; where it asks for nothing, end it with `yield from ()`"
    raise broken(type(component), "dialogue", f"returned {type(dialogue).__name__}, not a generator: {hint}")


def _well_formed(module: type, ask: Any) -> Ask:
    """What a module's dialogue yielded, which must be an Ask of messages."""
    example = 'write `reply = yield Ask("step", (Message("user", prompt),), max_tokens)`'
    if not isinstance(ask, Ask):
        raise broken(module, "dialogue", f"yielded {type(ask).__name__}, not an Ask; {example}")
    messages, stop, wrong = ask.messages, cast("object", ask.stop), None
    if not isinstance(messages, tuple | list) or not messages:
        wrong = f"messages must be a tuple of Message, not {messages!r:.60}"
    elif strange := [message for message in messages if not isinstance(message, Message)]:
        wrong = f"messages hold {type(strange[0]).__name__}, not Message"
    elif any(not isinstance(message.content, str) for message in messages):
        wrong = "the content of a message must be text"
    elif isinstance(ask.max_tokens, bool) or not isinstance(ask.max_tokens, int) or ask.max_tokens < 1:
        wrong = f"max_tokens must be a whole number above 0, not {ask.max_tokens!r:.60}"
    elif not isinstance(ask.step, str) or not ask.step:
        wrong = f"step must be a name, not {ask.step!r:.60}"
    elif not isinstance(stop, tuple | list) or not all(isinstance(text, str) for text in stop):
        wrong = f"stop must be a tuple of texts, not {ask.stop!r:.60}"
    if wrong is not None:
        raise broken(module, "dialogue", f"yielded an Ask that cannot be asked: {wrong}; {example}")
    if is_users(module) and (half := _half_character(messages)) is not None:
        raise broken(module, "dialogue", f"yielded an Ask that cannot be asked: a message holds {half}")
    return ask if isinstance(messages, tuple) else replace(ask, messages=tuple(messages))


def _half_character(messages: Sequence[Message]) -> str | None:
    """Where a message holds half of a surrogate pair, which no tokenizer takes; None where none does."""
    for message in messages:
        try:
            message.content.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"half of a surrogate pair as character {error.start}"
    return None


class AnswerModuleOptions(ModuleOptions):
    """Options of modules that answer the question. They say by `answer_prompt` which of their prompts asks for it."""

    answer_form: AnswerForm | None = None
    """The form in which the prompt asks for the answer: boxed, marker (`**Answer:**`), the_answer_is or plain; null:
    what its wording says."""

    @property
    def answer_prompt(self) -> str:
        """The wording that asks for the answer."""
        raise NotImplementedError(f"{type(self).__name__} does not say which prompt asks for the answer")

    @property
    def asked_form(self) -> AnswerForm:
        return self.answer_form or form_asked_for(self.answer_prompt)
