"""The note that a careful reader of a text would take: the sentences of a chunk that hold the evidence. Pure.

Demonstrations for supervised fine-tuning are made from it; the gold answers are known.
"""

from __future__ import annotations

import re

from memfactory.errors import NoDemonstrationError
from memfactory.memory.words import SEARCH_STOP_WORDS, stem, words
from memfactory.text import sentences
from memfactory.types import Task

Note = tuple[str, ...]
"""Sentences in the order in which they were read, each in one line."""
CLOSED = frozenset({"yes", "no"})
"""Answers that no sentence holds as such."""


def noted(chunk: str, note: Note, task: Task) -> Note:
    """`note` after `chunk` has been read.

    The task's own evidence (`support`) joins the note, and a corrected sentence leaves it once a later one is in it. A
    task without evidence has the one sentence that holds a gold answer and shares the most words with the question.
    """
    return _with_evidence(chunk, note, task) if task.support else _with_best(chunk, note, task)


def gold_answer(note: Note, task: Task) -> str:
    """The answer that `note` supports, a gold one. Raises NoDemonstrationError if the note lacks the evidence."""
    if not task.answers:
        raise NoDemonstrationError("the task has no gold answer")
    if task.support:
        needed = {_one_line(sentence) for sentence in task.support} - {_one_line(old) for old in task.outdated}
        if not needed <= set(note):
            raise NoDemonstrationError("no chunk holds all of a sentence of the evidence")
        return next((gold for gold in task.answers if _holds(note, gold)), task.answers[0])
    for gold in task.answers:
        if _holds(note, gold):
            return gold
    raise NoDemonstrationError("the task has no evidence, and no sentence of its text holds a gold answer")


def _with_evidence(chunk: str, note: Note, task: Task) -> Note:
    text, outdated = _one_line(chunk), {_one_line(sentence) for sentence in task.outdated}
    evidence = dict.fromkeys(_one_line(sentence) for sentence in task.support)
    new = sorted((sentence for sentence in evidence if sentence in text and sentence not in note), key=text.find)
    after = (*note, *new)
    return tuple(sentence for sentence in after if sentence not in outdated or sentence == after[-1])


def _with_best(chunk: str, note: Note, task: Task) -> Note:
    golds = [gold for gold in task.answers if gold.strip().lower() not in CLOSED]
    question = _content(task.question)
    best, most = note, max((len(question & _content(sentence)) for sentence in note), default=-1)
    for sentence in map(_one_line, sentences(chunk)):
        shared = len(question & _content(sentence))
        if shared > most and any(_holds((sentence,), gold) for gold in golds):
            best, most = (sentence,), shared
    return best


def _holds(note: Note, gold: str) -> bool:
    """Whether a sentence of `note` has `gold` as words of its own, in any case of letters."""
    pattern = rf"(?<!\w){re.escape(_one_line(gold))}(?!\w)"
    return any(re.search(pattern, sentence, re.IGNORECASE) for sentence in note)


def _content(text: str) -> set[str]:
    return {stem(word) for word in words(text) if word not in SEARCH_STOP_WORDS}


def _one_line(text: str) -> str:
    return " ".join(text.split())
