"""Conversations, tasks and memory items as text in prompts. Pure; modules and generated data share it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memfactory.types import MemoryItem, Task, Utterance

NOTHING = "(nothing)"
TEXT = "Text"
"""The speaker of a text's paragraphs."""


def render_item(item: MemoryItem) -> str:
    """An item in one line, after the time of its last mention if that is known."""
    time = item.updated_at or item.created_at
    return f"{time}: {item.text}" if time else item.text


def numbered_list(lines: Sequence[str], first: int = 1) -> str:
    """`1. a`, `2. b`, ... one per line; NOTHING for no lines."""
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, first)) or NOTHING


def bullet_list(lines: Sequence[str]) -> str:
    """`- a`, `- b`, ... one per line; NOTHING for no lines."""
    return "\n".join(f"- {line}" for line in lines) or NOTHING


def bracketed_list(lines: Sequence[str], first: int = 0) -> str:
    """`[0] a`, `[1] b`, ... one per line; NOTHING for no lines."""
    return "\n".join(f"[{number}] {line}" for number, line in enumerate(lines, first)) or NOTHING


def render_conversation(utterances: Sequence[Utterance]) -> str:
    """`speaker: [time] text`, one per line; an utterance without a time has no brackets."""
    return "\n".join(
        f"{turn.speaker}: [{turn.time}] {turn.text}" if turn.time else f"{turn.speaker}: {turn.text}"
        for turn in utterances
    )


def render_task(task: Task) -> str:
    """All that a task has to answer from, as one text: its context, its memory, and its conversation."""
    memory = bullet_list([render_item(item) for item in task.memory]) if task.memory else ""
    return "\n\n".join(text for text in (task.context, memory, render_conversation(task.conversation)) if text)


def utterances_of(task: Task) -> tuple[Utterance, ...]:
    """The utterances that a memory is built from: the task's conversation, else the paragraphs of its context."""
    if task.conversation or not task.context:
        return task.conversation
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", task.context)]
    return tuple(Utterance(TEXT, paragraph) for paragraph in paragraphs if paragraph)
