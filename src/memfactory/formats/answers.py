r"""The forms in which an agent asks for its answer, and the answer that a reply holds in each of them. Pure.

- `boxed`: `\boxed{...}`, as MemAgent asks;
- `marker`: the line after `**Answer:**`, as Memory-R1 asks;
- `the_answer_is`: what follows "the answer is";
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
    """The form that the wording of a prompt asks for; `plain` where it names none."""
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
    """What follows the last "the answer is", without asterisks and a final full stop; None without it."""
    pieces = THE_ANSWER_IS.split(reply.replace("*", ""))
    return pieces[-1].strip().strip(".").strip() if len(pieces) > 1 else None


_READ: Mapping[AnswerForm, tuple[Callable[[str], str | None], ...]] = MappingProxyType(
    {
        "boxed": (boxed_answer, after_the_answer_is, after_marker),
        "marker": (after_marker, boxed_answer),
        "the_answer_is": (after_the_answer_is, boxed_answer, after_marker),
        "plain": (boxed_answer, after_marker),
    }
)
"""How an answer is looked for by the form that was asked for. "The answer is" may begin a plain answer, so it is not
looked for in one."""


def bare_answer(text: str, form: AnswerForm) -> str:
    """The answer in `text` without what wraps it: the asked form first, then the others, else all of `text`."""
    found = next((held for read in _READ[form] if (held := read(text)) is not None), text)
    inside = boxed_answer(found)
    return (found if inside is None else inside).strip()


def answer_part(reply: str, form: AnswerForm) -> str | None:
    """Where in `reply` the answer stands: the line after the marker, else all that follows thinking. None: nowhere."""
    part = after_marker(reply) if form == "marker" else after_thinking(reply)
    return part if part and part.strip() else None


def keeps_form(part: str | None, form: AnswerForm) -> bool:
    """Whether a reply whose `answer_part` is `part` has the form that was asked for."""
    if part is None or form in ("marker", "plain"):
        return part is not None
    return (boxed_answer(part) if form == "boxed" else after_the_answer_is(part)) is not None
