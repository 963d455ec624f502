"""How conversations and memory items are written in prompts. Pure; shared by modules and by what demonstrates them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memfactory.types import MemoryItem, Task, Utterance

NOTHING = "(nothing)"
TEXT = "Text"
"""Who speaks the paragraphs of a text."""


def render_item(item: MemoryItem) -> str:
    """An item in one line, after the time at which it was last said where that is known."""
    time = item.updated_at or item.created_at
    return f"{time}: {item.text}" if time else item.text


def numbered_list(lines: Sequence[str], first: int = 1) -> str:
    """`1. a`, `2. b`, ... one a line; NOTHING for no lines."""
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, first)) or NOTHING


def bullet_list(lines: Sequence[str]) -> str:
    """`- a`, `- b`, ... one a line; NOTHING for no lines."""
    return "\n".join(f"- {line}" for line in lines) or NOTHING


def bracketed_list(lines: Sequence[str], first: int = 0) -> str:
    """`[0] a`, `[1] b`, ... one a line; NOTHING for no lines."""
    return "\n".join(f"[{number}] {line}" for number, line in enumerate(lines, first)) or NOTHING


def render_conversation(utterances: Sequence[Utterance]) -> str:
    """`speaker: [time] text`, one a line; the time is left out where it is not known."""
    return "\n".join(
        f"{turn.speaker}: [{turn.time}] {turn.text}" if turn.time else f"{turn.speaker}: {turn.text}"
        for turn in utterances
    )


def render_task(task: Task) -> str:
    """All that a task gives to answer from, in one text: its text, the memory before the conversation, and that."""
    memory = bullet_list([render_item(item) for item in task.memory]) if task.memory else ""
    return "\n\n".join(part for part in (task.context, memory, render_conversation(task.conversation)) if part)


def utterances_of(task: Task) -> tuple[Utterance, ...]:
    """What a task gives to be remembered: its conversation, else the paragraphs of its text as the turns of one."""
    if task.conversation or not task.context:
        return task.conversation
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", task.context)]
    return tuple(Utterance(TEXT, part) for part in paragraphs if part)
