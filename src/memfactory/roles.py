"""The roles of modules in the shipped agents: the inputs of each role's dialogue and the result that it returns.

| role      | dialogue(...)                | returns                       |
|-----------|------------------------------|-------------------------------|
| Reader    | episode                      | the ParsedAnswer, from the whole task |
| Extractor | episode, utterances          | candidates for the memory     |
| Updater   | episode, bank, candidates    | None; it changes the bank     |
| Retriever | episode, bank                | items for the question, best first |
| Answerer  | episode, items               | the ParsedAnswer, from the items    |
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from memfactory.components import ModuleOptions
from memfactory.dialogue import Asking, Module, ModuleT
from memfactory.episode import Episode
from memfactory.formats.answers import bare_answer, form_of_prompt
from memfactory.memory.bank import MemoryBank
from memfactory.plugins.boundary import broken, short_repr
from memfactory.text import after_thinking
from memfactory.types import AnswerForm, Candidate, MemoryItem, Utterance

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class ParsedAnswer:
    """The answer that a reply holds. `text` is the answer alone (None: there is none), `reply` the text it was taken
    from (None: `text` itself), `form` the form that the prompt asked for (None: unknown).

    `citations` are the ids of the items that the answer cites: empty if none helped, None without a well-formed
    citation.
    """

    text: str | None
    reply: str | None = None
    form: AnswerForm | None = None
    citations: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in {"text": self.text, "reply": self.reply}.items():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"an answer's {name} must be text or None, not {type(value).__name__} {value!r:.60}")


class AnswerModuleOptions(ModuleOptions):
    """Options of modules that answer the question. `answer_prompt` is the prompt that asks for the answer."""

    answer_form: AnswerForm | None = None
    """The form in which the prompt asks for the answer: boxed, marker (`**Answer:**`), the_answer_is or plain; null:
    the form that its wording names."""

    @property
    def answer_prompt(self) -> str:
        """The prompt that asks for the answer."""
        raise NotImplementedError(f"{type(self).__name__} does not say which prompt asks for the answer")

    @property
    def requested_form(self) -> AnswerForm:
        return self.answer_form or form_of_prompt(self.answer_prompt)


class AnsweringModule(Module[ModuleT, ParsedAnswer]):
    """Base of the roles that answer the question."""

    def answer(
        self, text: str | None, citations: Sequence[str] | None = None, *, drop_thinking: bool = True
    ) -> ParsedAnswer:
        """The answer that `text` (a reply, or the part of one) holds in the form that the prompt asks for; None: none.

        Thinking is left out, and a reply that never ended it holds no answer, unless `drop_thinking` is false.
        `citations` are the ids of the items that the answer cites; None: no or a malformed citation.
        """
        form: AnswerForm = self.options.requested_form or "plain"
        ids = None if citations is None else tuple(citations)
        text = after_thinking(text) if drop_thinking and text is not None else text
        return ParsedAnswer(None if text is None else bare_answer(text, form), text, form, ids)

    def checked(self, result: Any) -> ParsedAnswer:
        if isinstance(result, ParsedAnswer):
            return result
        hint = "end it with `return self.answer(reply.text)`"
        raise broken(type(self), "dialogue", f"returned {short_repr(result)}, not a ParsedAnswer; {hint}")

    def record(self, episode: Episode, result: ParsedAnswer) -> None:
        episode.answer, episode.citations = result.text, result.citations
        episode.answer_text, episode.answer_form = result.reply, result.form


class Reader(AnsweringModule[ModuleT]):
    """Answers from all that the task has to read.

    >>> from memfactory.dialogue import Ask
    >>> from memfactory.types import Message
    >>> class Skim(Reader):
    ...     steps = ("skim",)
    ...
    ...     def dialogue(self, episode):
    ...         prompt = f"{episode.task.context[-200:]} {episode.task.question}"
    ...         reply = yield Ask("skim", (Message("user", prompt),), max_tokens=16)
    ...         return self.answer(reply.text)
    """

    roles: ClassVar[tuple[str, ...]] = ("reader",)

    @abstractmethod
    def dialogue(self, episode: Episode) -> Asking[ParsedAnswer]:
        """Read the task's text or conversation and return the answer."""


class Extractor(Module[ModuleT, tuple[Candidate, ...]]):
    """Finds facts worth remembering in a part of a conversation.

    >>> class Verbatim(Extractor):
    ...     def dialogue(self, episode, utterances):
    ...         yield from ()
    ...         return [Candidate(turn.text, sources=(turn.id,)) for turn in utterances]
    """

    roles: ClassVar[tuple[str, ...]] = ("extractor",)

    @abstractmethod
    def dialogue(self, episode: Episode, utterances: Sequence[Utterance]) -> Asking[tuple[Candidate, ...]]:
        """Return the candidates that the utterances hold."""

    def checked(self, result: Any) -> tuple[Candidate, ...]:
        return _tuple_of(Candidate, type(self), result)


class Updater(Module[ModuleT, None]):
    """Decides which candidates join the memory bank and which items they change or replace.

    >>> class AddAll(Updater):
    ...     def dialogue(self, episode, bank, candidates):
    ...         yield from ()
    ...         bank.add(candidates)
    """

    roles: ClassVar[tuple[str, ...]] = ("updater",)

    @abstractmethod
    def dialogue(self, episode: Episode, bank: MemoryBank, candidates: Sequence[Candidate]) -> Asking[None]:
        """Apply the operations for the candidates to the bank."""

    def checked(self, result: Any) -> None:
        if result is not None:
            hint = "an updater changes the bank itself (`bank.apply(operations)`) and returns nothing"
            raise broken(type(self), "dialogue", f"returned {short_repr(result)}; {hint}")


class Retriever(Module[ModuleT, tuple[MemoryItem, ...]]):
    """Chooses the items of the memory bank for the question, the best first.

    >>> class Newest(Retriever):
    ...     def dialogue(self, episode, bank):
    ...         yield from ()
    ...         return bank.list()[:-4:-1]
    """

    roles: ClassVar[tuple[str, ...]] = ("retriever",)

    @abstractmethod
    def dialogue(self, episode: Episode, bank: MemoryBank) -> Asking[tuple[MemoryItem, ...]]:
        """Return the items of the bank for `episode.task.question`, the best first."""

    def checked(self, result: Any) -> tuple[MemoryItem, ...]:
        return _tuple_of(MemoryItem, type(self), result)

    def record(self, episode: Episode, result: tuple[MemoryItem, ...]) -> None:
        episode.retrieved = result


class Answerer(AnsweringModule[ModuleT]):
    """Answers from the retrieved items.

    >>> from memfactory.dialogue import Ask
    >>> from memfactory.types import Message
    >>> class Terse(Answerer):
    ...     steps = ("answer",)
    ...
    ...     def dialogue(self, episode, items):
    ...         prompt = "\\n".join([*(item.text for item in items), episode.task.question])
    ...         reply = yield Ask("answer", (Message("user", prompt),), max_tokens=16)
    ...         return self.answer(reply.text, citations=[item.id for item in items])
    """

    roles: ClassVar[tuple[str, ...]] = ("answerer",)

    @abstractmethod
    def dialogue(self, episode: Episode, items: Sequence[MemoryItem]) -> Asking[ParsedAnswer]:
        """Return the answer to `episode.task.question` from the items."""


def _tuple_of(kind: type[ValueT], module: type, result: object) -> tuple[ValueT, ...]:
    """The result as a tuple of `kind`. Raises PluginError for any other value."""
    if isinstance(result, tuple | list) and all(isinstance(value, kind) for value in result):
        return tuple(result)
    raise broken(module, "dialogue", f"returned {short_repr(result)}, not a tuple of {kind.__name__}")
