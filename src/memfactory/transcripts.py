"""The conversations of sampled groups as JSON lines, one trajectory a line: transcripts/step-000010.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from memfactory.components import POLICY
from memfactory.errors import DataError
from memfactory.files.atomic import write_text
from memfactory.files.json_lines import json_line, read_json_lines
from memfactory.types import BankTrace, Group, Message, Role, Stop, Tokens, Trajectory, Turn

StepAdvantages = Mapping[str, Sequence[float | None]]
"""A module step to the advantage of each trajectory of a group; None: its reward is unknown."""
Frame = Callable[[Sequence[Role]], str]
"""The text of a chat template around messages of such roles, with {0}, {1}, ... where their contents stand."""
DECIMALS = 6


@dataclass(frozen=True)
class TranscriptTurn:
    """One conversation. Token counts are None if the engine gives no ids.

    `template` is the text of the chat template around the messages (a system prompt of its own, say), with {0}, {1},
    ... in place of their contents: together they are the prompt. It is None for another engine than the policy's.
    `tokens` are the ids of prompt and reply and the log-probabilities of the latter, if the run keeps them.
    """

    step: str
    messages: tuple[Message, ...]
    reply: str
    stop: Stop
    trainable: bool
    prompt_tokens: int | None
    reply_tokens: int | None
    template: str | None = None
    tokens: Mapping[str, Sequence[float]] | None = None

    def to_json(self) -> dict[str, object]:
        """The turn as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value is not None or name.endswith("_tokens")}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> TranscriptTurn:
        """The turn that `to_json` wrote."""
        return TranscriptTurn(**{**value, "messages": tuple(Message(**message) for message in value["messages"])})


@dataclass(frozen=True)
class Transcript:
    """One trajectory as it was trained on. `advantage` is by module step; a step that trains nothing is not in it.

    `tokens_read` and `tokens_dropped` count the tokens of its text; None: its modules do not report them.
    `step_rewards` are those of module steps that have their own, and `bank` is the trace of the memory bank in the form
    of `BankTrace.to_json`; an earlier trajectory of the group with an equal bank is named by its index in its place.
    `failure` is the reason of an early end.
    """

    step: int
    task_id: str
    question: str
    answers: tuple[str, ...]
    index: int
    reward: float | None
    parts: Mapping[str, float | None]
    advantage: Mapping[str, float | None]
    answer: str | None
    turns: tuple[TranscriptTurn, ...]
    tokens_read: int | None = None
    tokens_dropped: int | None = None
    step_rewards: Mapping[str, float | None] = field(default_factory=lambda: MappingProxyType({}))
    bank: Mapping[str, object] | None = None
    failure: str | None = None

    def to_json(self) -> dict[str, object]:
        """The transcript as one JSON object."""
        read = {"tokens_read": self.tokens_read, "tokens_dropped": self.tokens_dropped} if self.is_read else {}
        steps = {"steps": dict(self.step_rewards)} if self.step_rewards else {}
        return {
            "step": self.step,
            "task_id": self.task_id,
            "question": self.question,
            "answers": list(self.answers),
            "index": self.index,
            "reward": {"total": self.reward, "parts": dict(self.parts), **steps},
            "advantage": dict(self.advantage),
            "answer": self.answer,
            "turns": [turn.to_json() for turn in self.turns],
            **read,
            **({} if self.bank is None else {"bank": dict(self.bank)}),
            **({} if self.failure is None else {"failure": self.failure}),
        }

    @property
    def is_read(self) -> bool:
        """Whether its modules report the tokens that they read."""
        return self.tokens_read is not None

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Transcript:
        """The transcript that `to_json` wrote."""
        reward = value["reward"]
        return Transcript(
            **{name: value[name] for name in ("step", "task_id", "question", "advantage", "answer")},
            index=value["index"] if "index" in value else value["member"],  # older files say "member"
            answers=tuple(value["answers"]),
            reward=reward["total"],
            parts=reward["parts"],
            tokens_read=value.get("tokens_read"),
            tokens_dropped=value.get("tokens_dropped"),
            turns=tuple(map(TranscriptTurn.from_json, value["turns"])),
            step_rewards=reward.get("steps", {}),
            bank=value.get("bank"),
            failure=value.get("failure"),
        )


def transcripts_path(folder: Path, step: int) -> Path:
    """The file with the transcripts of optimizer step `step` of the run in `folder`."""
    return folder / "transcripts" / f"step-{step:06d}.jsonl"


def write_transcripts(
    folder: Path,
    step: int,
    groups: Sequence[Group],
    advantages: Sequence[StepAdvantages],
    *,
    frame: Frame | None = None,
    tokens: bool = False,
) -> Path:
    """Write the transcripts of these groups, whole or not at all; a resumed run rewrites the same file.

    `advantages` has one entry a group. `frame` is the policy's chat template; `tokens` keeps ids and log-probabilities.
    """
    around = None if frame is None else cache(lambda *roles: frame(roles))
    rows = []
    for group, credit in zip(groups, advantages, strict=True):
        banks: list[tuple[int, BankTrace]] = []
        for index, trajectory in enumerate(group.trajectories):
            advantage = {name: of_step[index] for name, of_step in credit.items()}
            turns = tuple(_turn(turn, around, tokens) for turn in trajectory.turns)
            row = _transcript(step, group, trajectory, advantage, turns)
            bank = None if trajectory.bank is None else _bank(trajectory.index, trajectory.bank, banks)
            rows.append(replace(row, bank=bank))
    path = transcripts_path(folder, step)
    write_text(path, "".join(json_line(row.to_json()) for row in rows))
    return path


def read_transcripts(path: Path) -> Iterator[Transcript]:
    """The trajectories of one file, in the order they were written. Raises DataError for lines of another form."""
    for value in read_json_lines(path):
        try:
            yield Transcript.from_json(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} holds a line that is not a transcript ({error!r}): {value!r:.80}") from None


def _bank(index: int, own: BankTrace, banks: list[tuple[int, BankTrace]]) -> Mapping[str, object]:
    """The bank of the trajectory with this index; it joins `banks`, those of the group so far, if none is equal."""
    same = next((other for other, bank in banks if (bank.items, bank.changes) == (own.items, own.changes)), None)
    if same is None:
        banks.append((index, own))
    return own.to_json(same)


def _transcript(
    step: int,
    group: Group,
    trajectory: Trajectory,
    advantage: Mapping[str, float | None],
    turns: tuple[TranscriptTurn, ...],
) -> Transcript:
    return Transcript(
        step=step,
        task_id=group.task.id,
        question=group.task.question,
        answers=group.task.answers,
        index=trajectory.index,
        reward=trajectory.reward.total,
        parts=dict(trajectory.reward.parts),
        advantage=advantage,
        answer=trajectory.answer,
        turns=turns,
        step_rewards=dict(trajectory.reward.steps),
        failure=trajectory.failure,
        tokens_read=None if trajectory.reading is None else trajectory.reading.read,
        tokens_dropped=None if trajectory.reading is None else trajectory.reading.dropped,
    )


def _turn(turn: Turn, around: Callable[..., str] | None, tokens: bool) -> TranscriptTurn:
    prompt_tokens, reply_tokens = turn.lengths or (None, None)
    return TranscriptTurn(
        step=turn.step,
        messages=turn.messages,
        reply=turn.reply.text,
        stop=turn.reply.stop,
        trainable=turn.trainable,
        prompt_tokens=prompt_tokens,
        reply_tokens=reply_tokens,
        template=None if around is None or turn.engine != POLICY else around(*(m.role for m in turn.messages)),
        tokens=_tokens(turn.reply.tokens) if tokens and turn.reply.tokens is not None else None,
    )


def _tokens(tokens: Tokens) -> dict[str, list[float]]:
    return {
        "prompt_ids": [*tokens.prompt_ids],
        "reply_ids": [*tokens.reply_ids],
        "logprobs": [round(value, DECIMALS) for value in tokens.logprobs],
    }
