"""The conversations of sampled groups as JSON lines, one trajectory a line: transcripts/step-000010.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memfactory.files import json_line, read_json_lines, write_whole
from memfactory.types import Group, Message, Stop, Trajectory, Turn

StepAdvantages = Mapping[str, Sequence[float | None]]
"""A module step to the advantage of each trajectory of a group; None: its reward is unknown."""


@dataclass(frozen=True)
class TranscriptTurn:
    """One conversation. Token counts are None where the engine gives no ids."""

    step: str
    messages: tuple[Message, ...]
    reply: str
    stop: Stop
    trainable: bool
    prompt_tokens: int | None
    reply_tokens: int | None


@dataclass(frozen=True)
class Transcript:
    """One trajectory as it was trained on. `advantage` is by module step; a step that trains nothing is not in it.

    `tokens_read` and `tokens_dropped` say how much of its text it was shown; None: its modules do not say.
    """

    step: int
    task_id: str
    question: str
    answers: tuple[str, ...]
    member: int
    reward: float | None
    parts: Mapping[str, float | None]
    advantage: Mapping[str, float | None]
    answer: str | None
    turns: tuple[TranscriptTurn, ...]
    tokens_read: int | None = None
    tokens_dropped: int | None = None

    def to_json(self) -> dict[str, object]:
        read = {"tokens_read": self.tokens_read, "tokens_dropped": self.tokens_dropped} if self.is_read else {}
        return {
            "step": self.step,
            "task_id": self.task_id,
            "question": self.question,
            "answers": list(self.answers),
            "member": self.member,
            "reward": {"total": self.reward, "parts": dict(self.parts)},
            "advantage": dict(self.advantage),
            "answer": self.answer,
            "turns": [asdict(turn) for turn in self.turns],
            **read,
        }

    @property
    def is_read(self) -> bool:
        """Whether its modules say how much of the text they read."""
        return self.tokens_read is not None

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Transcript:
        reward = value["reward"]
        return Transcript(
            **{name: value[name] for name in ("step", "task_id", "question", "member", "advantage", "answer")},
            answers=tuple(value["answers"]),
            reward=reward["total"],
            parts=reward["parts"],
            tokens_read=value.get("tokens_read"),
            tokens_dropped=value.get("tokens_dropped"),
            turns=tuple(
                TranscriptTurn(**{**turn, "messages": tuple(Message(**message) for message in turn["messages"])})
                for turn in value["turns"]
            ),
        )


def transcripts_path(folder: Path, step: int) -> Path:
    """Where the transcripts of optimizer step `step` of the run in `folder` lie."""
    return folder / "transcripts" / f"step-{step:06d}.jsonl"


def write_transcripts(folder: Path, step: int, groups: Sequence[Group], advantages: Sequence[StepAdvantages]) -> Path:
    """Write the transcripts of these groups, whole or not at all; a resumed run rewrites the same file.

    `advantages` has one entry a group.
    """
    rows = [
        _transcript(step, group, trajectory, {name: given[index] for name, given in credit.items()})
        for group, credit in zip(groups, advantages, strict=True)
        for index, trajectory in enumerate(group.trajectories)
    ]
    path = transcripts_path(folder, step)
    write_whole(path, "".join(json_line(row.to_json()) for row in rows))
    return path


def read_transcripts(path: Path) -> Iterator[Transcript]:
    """The trajectories of one file, in the order they were written."""
    return (Transcript.from_json(value) for value in read_json_lines(path))


def _transcript(step: int, group: Group, trajectory: Trajectory, advantage: Mapping[str, float | None]) -> Transcript:
    return Transcript(
        step=step,
        task_id=group.task.id,
        question=group.task.question,
        answers=group.task.answers,
        member=trajectory.member,
        reward=trajectory.reward.total,
        parts=dict(trajectory.reward.parts),
        advantage=advantage,
        answer=trajectory.answer,
        turns=tuple(_turn(turn) for turn in trajectory.turns),
        tokens_read=None if trajectory.reading is None else trajectory.reading.read,
        tokens_dropped=None if trajectory.reading is None else trajectory.reading.dropped,
    )


def _turn(turn: Turn) -> TranscriptTurn:
    prompt_tokens, reply_tokens = turn.lengths or (None, None)
    return TranscriptTurn(
        step=turn.step,
        messages=turn.messages,
        reply=turn.reply.text,
        stop=turn.reply.stop,
        trainable=turn.trainable,
        prompt_tokens=prompt_tokens,
        reply_tokens=reply_tokens,
    )
