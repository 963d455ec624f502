"""The values that pass between the parts of MemFactory. No torch, no I/O, no project import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
Stop = Literal["stop", "length"]
Scalar = str | int | float | bool | None


def frozen(values: Mapping[str, Scalar] | None = None) -> Mapping[str, Scalar]:
    """A read-only copy of a flat mapping."""
    return MappingProxyType(dict(values or {}))


@dataclass(frozen=True)
class Message:
    """One chat message in the OpenAI shape."""

    role: Role
    content: str


@dataclass(frozen=True)
class MemoryItem:
    """One entry of a memory bank. Times are ISO 8601 strings; `sources` names where the entry came from."""

    id: str
    key: str
    value: str
    kind: str = "fact"
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    created_at: str | None = None
    updated_at: str | None = None
    version: int = 1


@dataclass(frozen=True)
class Task:
    """One row as every environment gives it. `answers` are the gold answers and never enter a prompt."""

    id: str
    question: str
    answers: tuple[str, ...]
    context: str = ""
    memory: tuple[MemoryItem, ...] = ()
    messages: tuple[Message, ...] = ()
    meta: Mapping[str, Scalar] = field(default_factory=frozen)

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a task needs an id")
        if not self.question.strip():
            raise ValueError(f"task {self.id!r} has an empty question")


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn. The defaults are the model's own distribution: temperature 1, nothing cut off.

    `temperature` 0 is greedy; `top_k` 0 is off.
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
    """How one reply is drawn: `decoding`, at most `max_tokens` tokens, `stop` strings beside the end token.

    `seed` names the reply's own random stream, so a reply does not depend on what else is in the batch.
    """

    max_tokens: int
    decoding: Decoding = Decoding()
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
    """What an engine says. `text` has no special tokens; `tokens` is None where the engine gives no ids (an API)."""

    text: str
    stop: Stop
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Turn:
    """One independent conversation: which module step asked, what was fed, what came back."""

    step: str
    messages: tuple[Message, ...]
    reply: Reply
    trainable: bool

    def __post_init__(self) -> None:
        if self.trainable and self.reply.tokens is None:
            raise ValueError(f"the turn of step {self.step!r} is to be trained on but its reply has no token ids")


@dataclass(frozen=True)
class Reward:
    """The reward of one attempt. `total` None means unknown (the judge failed): never zero.

    `parts` are the named rewards before weighting; `steps` holds rewards of single module steps where the
    environment gives them, and a step that is not in it takes `total`.
    """

    total: float | None
    parts: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))
    steps: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))

    def of_step(self, step: str) -> float | None:
        """The reward that credits `step`."""
        return self.steps.get(step, self.total)


@dataclass
class Episode:
    """One attempt at a task while it is being played: the only value here that changes.

    `member` is the attempt's number within its group. `memory` is the text memory of recurrent agents.
    """

    task: Task
    member: int = 0
    seed: int = 0
    memory: str = ""
    turns: list[Turn] = field(default_factory=list)
    answer: str | None = None
    step_rewards: dict[str, Reward] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """A finished attempt."""

    member: int
    turns: tuple[Turn, ...]
    answer: str | None
    reward: Reward


@dataclass(frozen=True)
class Group:
    """The trajectories of one task: the unit of credit."""

    task: Task
    trajectories: tuple[Trajectory, ...]

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise ValueError(f"the group of task {self.task.id!r} has no trajectory")


class Codec(Protocol):
    """What modules need of a tokenizer: where its tokens lie in a text."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The half-open character span of every token of `text`, in order, without special tokens."""
        ...
