"""The values that pass between the parts of MemFactory. No torch, no I/O, no import of the project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
Stop = Literal["stop", "length"]
Scalar = str | int | float | bool | None
AnswerForm = Literal["boxed", "marker", "the_answer_is", "plain"]
"""The form in which a prompt asks for the answer; see `formats/answers.py`."""


def frozen(values: Mapping[str, Scalar] | None = None) -> Mapping[str, Scalar]:
    """A read-only copy of a flat mapping."""
    return MappingProxyType(dict(values or {}))


@dataclass(frozen=True)
class Message:
    """One chat message in the OpenAI shape.

    >>> Message("user", "Where does Anna live?").role
    'user'
    """

    role: Role
    content: str


@dataclass(frozen=True)
class Utterance:
    """One turn of a conversation that a memory is built from.

    `id` names it as evidence ("D3:7"), `time` is as the data writes it, `session` groups the turns of one sitting.

    >>> Utterance("Anna", "I moved to Oslo.", id="D1:3", time="May 7").speaker
    'Anna'
    """

    speaker: str
    text: str
    id: str = ""
    time: str | None = None
    session: str = ""


@dataclass(frozen=True)
class MemoryItem:
    """One entry of a memory bank. Times are as the data writes them. `sources` are the ids of the utterances that it
    comes from; `namespace` names the memory that it belongs to, such as a speaker's.

    >>> MemoryItem("m1", "home", "Anna lives in Oslo.", created_at="May 7").text
    'home: Anna lives in Oslo.'
    """

    id: str
    key: str
    value: str
    kind: str = "fact"
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    created_at: str | None = None
    updated_at: str | None = None
    version: int = 1
    namespace: str = ""

    @property
    def text(self) -> str:
        """The entry in one line: its value, after its key unless the value contains the key."""
        return _one_line(self.key, self.value)


@dataclass(frozen=True)
class Candidate:
    """A fact that an extractor proposes for the memory; it may become a MemoryItem. `time` is that of its utterances.

    >>> Candidate("Anna lives in Oslo.", namespace="anna", time="May 7").text
    'Anna lives in Oslo.'
    """

    value: str
    key: str = ""
    kind: str = "fact"
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    namespace: str = ""
    time: str | None = None

    @property
    def text(self) -> str:
        """The entry in one line: its value, after its key unless the value contains the key."""
        return _one_line(self.key, self.value)


@dataclass(frozen=True)
class Selection:
    """One sample of a reranker that learns from it: the candidate texts, the noise on each text's score, and the places
    of the chosen texts, the best first."""

    query: str
    texts: tuple[str, ...]
    noise: tuple[float, ...]
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """One row as every environment gives it.

    `answers` are the gold answers and `evidence` the ids of the utterances that hold them; neither enters a prompt.
    `support` are the sentences of the context that hold the answer, in its order, and `outdated` those of them that a
    later one corrects; they too serve rules and rewards alone.
    `memory` is the bank before the episode, `related` the ids of its items that an updater is shown (None: the updater
    searches for them), and `conversation` is read into it.

    >>> Task("q1", "Where does Anna live?", answers=("Oslo",), context="Anna lives in Oslo.").answers
    ('Oslo',)
    """

    id: str
    question: str
    answers: tuple[str, ...]
    context: str = ""
    memory: tuple[MemoryItem, ...] = ()
    related: tuple[str, ...] | None = None
    conversation: tuple[Utterance, ...] = ()
    evidence: tuple[str, ...] = ()
    support: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    meta: Mapping[str, Scalar] = field(default_factory=frozen)

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a task needs an id")
        if not self.question.strip():
            raise ValueError(f"task {self.id!r} has an empty question")


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters. The defaults leave the model's distribution unchanged: temperature 1, no truncation.

    `temperature` 0 is greedy; `top_k` 0 is off.

    >>> SamplingParams(temperature=0.0).top_p
    1.0
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")


@dataclass(frozen=True)
class Sampling:
    """How one reply is sampled: under `params`, at most `max_tokens` tokens, ended by the end token or a `stop` string.

    `seed` names the reply's own random stream, so a reply does not depend on the rest of the batch.
    """

    max_tokens: int
    params: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(frozen=True)
class Tokens:
    """The ids of one exchange exactly as fed (`prompt_ids`, P) and sampled (`reply_ids`, R).

    `logprobs` (R, nats) are those of the sampled ids under the distribution they were sampled from. The end token
    is in `reply_ids` only if it was sampled.

    >>> len(Tokens(prompt_ids=(1, 2), reply_ids=(3,), logprobs=(-0.5,)).reply_ids)
    1
    """

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("an exchange needs at least one prompt token")
        if len(self.reply_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.reply_ids)} reply ids but {len(self.logprobs)} log-probabilities")


@dataclass(frozen=True)
class Reply:
    """The reply of an engine. `text` has no special tokens; `tokens` is None if the engine gives no ids (an API).

    >>> Reply("Oslo", "stop").tokens is None
    True
    """

    text: str
    stop: Stop
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Turn:
    """One ask and its reply: the module step, the prompt's messages, the reply, and the engine that generated it.

    `lengths` are the numbers of tokens of prompt and reply; None if the engine gives no ids.

    >>> Turn("answer", (Message("user", "Where?"),), Reply("Oslo", "stop"), trainable=False).reply.text
    'Oslo'
    """

    step: str
    messages: tuple[Message, ...]
    reply: Reply
    trainable: bool
    lengths: tuple[int, int] | None = None
    engine: str = "policy"

    def __post_init__(self) -> None:
        tokens = self.reply.tokens
        if tokens is not None:
            object.__setattr__(self, "lengths", (len(tokens.prompt_ids), len(tokens.reply_ids)))
        elif self.trainable:
            raise ValueError(f"the turn of step {self.step!r} is to be trained on but its reply has no token ids")

    def without_prompt(self) -> Turn:
        """The turn without prompt and ids, so that the turns of a long text hold no copy of it."""
        return Turn(self.step, (), replace(self.reply, tokens=None), False, self.lengths, self.engine)


@dataclass(frozen=True)
class Reward:
    """The reward of one episode. `total` None means unknown (the judge failed): never zero.

    `parts` are the named rewards before weighting. `steps` holds the rewards of single module steps that the
    environment gives; a step that is not in it takes `total`.

    >>> Reward(0.5, steps={"update": 1.0}).of_step("update")
    1.0
    """

    total: float | None
    parts: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))
    steps: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))

    def of_step(self, step: str) -> float | None:
        """The reward that credits `step`."""
        return self.steps.get(step, self.total)


@dataclass(frozen=True)
class Reading:
    """The tokens of its text that an episode read, and the tokens that an option dropped."""

    read: int
    dropped: int = 0

    def __post_init__(self) -> None:
        if self.read < 0 or self.dropped < 0:
            raise ValueError(f"tokens are counted from 0, got {self.read} read and {self.dropped} dropped")


@dataclass(frozen=True)
class Trajectory:
    """A finished episode with its reward. `failure`, `overlong` and `reading` are the episode's; `bank` is the history
    of its memory bank.

    >>> Trajectory(0, (), "Oslo", Reward(1.0)).reward.total
    1.0
    """

    index: int
    turns: tuple[Turn, ...]
    answer: str | None
    reward: Reward
    failure: str | None = None
    overlong: bool = False
    reading: Reading | None = None
    bank: BankTrace | None = None


@dataclass(frozen=True)
class Group:
    """The trajectories of one task: the unit of credit. `place` is the task's place in the order of the run's tasks
    over all epochs; None without such an order.

    >>> task = Task("q1", "Where does Anna live?", ("Oslo",))
    >>> group = Group(task, (Trajectory(0, (), "Oslo", Reward(1.0)), Trajectory(1, (), "Rome", Reward(0.0))))
    >>> len(group.trajectories)
    2
    """

    task: Task
    trajectories: tuple[Trajectory, ...]
    place: int | None = None

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise ValueError(f"the group of task {self.task.id!r} has no trajectory")


class Codec(Protocol):
    """The part of a tokenizer that modules use: the places of the tokens in a text."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The half-open character span of every token of `text`, in order, without special tokens."""
        ...


@dataclass(frozen=True)
class Event:
    """One change: the item before it (None: it is new) and after it (None: it is deleted).

    >>> Event(before=None, after=MemoryItem("m1", "", "Anna lives in Oslo.")).id
    'm1'
    """

    before: MemoryItem | None
    after: MemoryItem | None

    @property
    def id(self) -> str:
        """The id of the item that was changed."""
        for item in (self.before, self.after):
            if item is not None:
                return item.id
        raise ValueError("a change has an item before or after it")


@dataclass(frozen=True)
class BankTrace:
    """A memory bank after an episode: its items, every change with the number of the episode's own turn that led to it
    (None: shared work did), and the ids of the items that were retrieved and cited."""

    items: tuple[MemoryItem, ...]
    changes: tuple[tuple[int | None, Event], ...]
    retrieved: tuple[str, ...]
    citations: tuple[str, ...] | None

    def to_json(self, same_as: int | None = None) -> dict[str, object]:
        """As transcripts hold it. A bank equal to that of trajectory `same_as` has only the retrieved and cited ids."""
        bank: dict[str, object] = {"same_as": same_as}
        if same_as is None:
            bank = {
                "items": [item_json(item) for item in self.items],
                "changes": [{"turn": turn, **change_json(event)} for turn, event in self.changes],
            }
        cited = {} if self.citations is None else {"citations": list(self.citations)}
        return {**bank, "retrieved": list(self.retrieved), **cited}


def item_json(item: MemoryItem) -> dict[str, object]:
    """An item's fields, without those that have their defaults."""
    plain = vars(MemoryItem("", "", ""))
    return {name: value for name, value in vars(item).items() if value != plain[name]}


def change_json(event: Event) -> dict[str, object]:
    """A change as records hold it: the operation, the item's id, and the item before and after, if it existed."""
    operation = "ADD" if event.before is None else "DELETE" if event.after is None else "UPDATE"
    items = {"before": event.before, "after": event.after}
    return {
        "operation": operation,
        "id": event.id,
        **{name: item_json(item) for name, item in items.items() if item is not None},
    }


def _one_line(key: str, value: str) -> str:
    value, key = " ".join(value.split()), " ".join(key.split())
    return value if not key or key.lower() in value.lower() else f"{key}: {value}"
