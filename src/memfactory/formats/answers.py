r"""The forms in which a prompt asks for the answer, and how to find the answer in a reply. Pure.

- `boxed`: `\boxed{...}`, as MemAgent asks;
- `marker`: the line after `**Answer:**`, as Memory-R1 asks;
- `the_answer_is`: the text after "the answer is";
- `plain`: the whole reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from memfactory.text import after_marker, after_thinking, last_boxed, without_latex_text
from memfactory.types import AnswerForm

MARKER = "**Answer:**"
THE_ANSWER_IS = re.compile(r"the answer is", re.IGNORECASE)


def form_of_prompt(prompt: str) -> AnswerForm:
    """The form that a prompt asks for; `plain` if it names none."""
    if "\\boxed" in prompt:
        return "boxed"
    if MARKER in prompt:
        return "marker"
    return "the_answer_is" if THE_ANSWER_IS.search(prompt) else "plain"


def boxed_answer(reply: str) -> str | None:
    r"""The content of the last `\boxed{...}`, without `\text{...}` around words; None without one."""
    content = last_boxed(reply)
    return None if content is None else without_latex_text(content)


def after_the_answer_is(reply: str) -> str | None:
    """The text after the last "the answer is", without asterisks and a final full stop; None without it."""
    segments = THE_ANSWER_IS.split(reply.replace("*", ""))
    return segments[-1].strip().strip(".").strip() if len(segments) > 1 else None


_READ: Mapping[AnswerForm, tuple[Callable[[str], str | None], ...]] = MappingProxyType(
    {
        "boxed": (boxed_answer, after_the_answer_is, after_marker),
        "marker": (after_marker, boxed_answer),
        "the_answer_is": (after_the_answer_is, boxed_answer, after_marker),
        "plain": (boxed_answer, after_marker),
    }
)
"""The readers of an answer by the requested form, in order. "The answer is" may begin a plain answer, so it is no
marker there."""


def bare_answer(text: str, form: AnswerForm) -> str:
    """The answer in `text` without its wrapping: the requested form first, then the others, else all of `text`."""
    answer = next((content for read in _READ[form] if (content := read(text)) is not None), text)
    boxed = boxed_answer(answer)
    return (answer if boxed is None else boxed).strip()


def in_form(answer: str, form: AnswerForm) -> str:
    r"""A reply that is `answer` alone, in the requested form.

    >>> in_form("204", "boxed")
    '\\boxed{204}'
    """
    templates = {"boxed": "\\boxed{%s}", "marker": f"{MARKER} %s", "the_answer_is": "The answer is %s.", "plain": "%s"}
    return templates[form] % answer


def answer_part(reply: str, form: AnswerForm) -> str | None:
    """The part of `reply` that holds the answer: the line after the marker, else all after thinking; None: no part."""
    part = after_marker(reply) if form == "marker" else after_thinking(reply)
    return part if part and part.strip() else None


def keeps_form(part: str | None, form: AnswerForm) -> bool:
    """Whether a reply whose `answer_part` is `part` has the requested form."""
    if part is None or form in ("marker", "plain"):
        return part is not None
    return (boxed_answer(part) if form == "boxed" else after_the_answer_is(part)) is not None
