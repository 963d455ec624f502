"""The dataset `locomo`, and `memfactory data locomo`: LoCoMo's questions in Memory-R1's split (arXiv 2508.19828).

Memory-R1's 152 / 81 / 1307 questions are whole conversations: it trains on one, validates on another, and tests on the
rest. A row has one of four forms:

- `questions`: the whole conversation, to be read into an empty bank, and the question;
- `replay`: the conversation up to the end of the session in which the question can be answered;
- `window`: the turns before the last turn t of the question's evidence and t itself, to be read into an empty bank;
- `tuples`: at the last turn t of the question's evidence, the bank as it may be then (`memory`) and the turns that are
  new (`fact`). Memory-R1's bank is built by a language model; this one holds the raw turns before, one an item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.data.benchmarks.locomo_source import (
    ADVERSARIAL,
    CATEGORIES,
    Conversation,
    Question,
    Turn,
    read_conversations,
)
from memfactory.data.writing import OnProgress, Report, write_rows
from memfactory.errors import DataError, unknown
from memfactory.registry import DATASETS, Options

Form = Literal["questions", "replay", "window", "tuples"]
Values = dict[str, object]
TRAIN, VALIDATION = "conv-26", "conv-30"
SPLITS = ("train", "val", "test", "all")


class LocomoForm(Options):
    """What a row of LoCoMo is like."""

    form: Form = "questions"
    """What a row holds: questions (the whole conversation), replay (until the answer is known), window (the last turns
    until then) or tuples (one turn)."""
    categories: list[int] = Field([1, 2, 3, 4], min_length=1)
    """Which categories of questions; 5 are adversarial ones, which the conversation does not answer."""
    captions: bool = True
    """Whether what a shared image shows stands behind the text of its turn."""
    window: int = Field(50, ge=0)
    """Turns in the bank of a tuple, or before the last turn of a window (Memory-R1's algorithm says 50, its text
    24)."""
    fact_turns: int = Field(4, ge=1)
    """The most turns that are new in a tuple, all of one session."""
    namespaces: Literal["joint", "speaker"] = "joint"
    """Whose memory the items of a tuple's bank are: one for all, or that of the speaker."""

    def without_effect(self) -> Mapping[str, str]:
        idle: tuple[str, ...] = () if self.form == "tuples" else ("fact_turns", "namespaces")
        idle += () if self.form in ("tuples", "window") else ("window",)
        return dict.fromkeys(idle, f"form is {self.form}")

    @field_validator("categories")
    @classmethod
    def _categories_exist(cls, categories: list[int]) -> list[int]:
        wrong = [category for category in categories if category not in CATEGORIES]
        if wrong:
            raise ValueError(f"there is no category {wrong[0]}; LoCoMo's are {', '.join(map(str, CATEGORIES))}")
        return categories


class LocomoOptions(DatasetOptions, LocomoForm):
    """Options of `locomo`."""

    path: str = "data/locomo10.json"
    """LoCoMo's file; relative to the working directory, else to the config's folder."""
    split: str | list[str] = "test"
    """train (conv-26), val (conv-30), test (all others), all, or ids of conversations."""


@DATASETS.register("locomo")
class LocomoDataset(Dataset[LocomoOptions]):
    """LoCoMo: questions about conversations of many sessions, in Memory-R1's split by conversation."""

    @property
    def source(self) -> str:
        split = self.options.split
        return f"{self.options.path} ({split if isinstance(split, str) else ', '.join(split)})"

    def rows(self) -> Sequence[Row]:
        """Every question's row. Rows of one conversation share one list of turns, which is large.

        With `skip_bad_rows` what does not fit is a row with a problem, whichever split it would be of.
        """
        path, problems = self.options.path, list[str]()
        kept = problems if self.options.skip_bad_rows else None
        conversations = in_split(read_conversations(path, self.base_dir, kept), self.options.split)
        rows = [row for conversation in conversations for row in rows_of(conversation, self.options)]
        found = [Row(values, f"{self.options.path} {values['id']}") for values in rows[: self.options.limit]]
        return [*(Row({}, path, problem.removeprefix(f"{path} ")) for problem in problems), *found]


def in_split(conversations: Sequence[Conversation], split: str | Sequence[str]) -> list[Conversation]:
    """The conversations of a split by its name, or by their ids. Raises DataError for an id that is not there."""
    there = {conversation.id: conversation for conversation in conversations}
    if split == "all":
        return list(conversations)
    if split == "test":
        return [conversation for conversation in conversations if conversation.id not in (TRAIN, VALIDATION)]
    wanted = [{"train": TRAIN, "val": VALIDATION}.get(split, split)] if isinstance(split, str) else list(split)
    for name in wanted:
        if name not in there:
            raise DataError(f"split {split}: {unknown('conversation', name, [*there, *SPLITS])}")
    return [there[name] for name in dict.fromkeys(wanted)]


def rows_of(conversation: Conversation, form: LocomoForm) -> list[Values]:
    """The rows of one conversation in the order of its questions. Only `questions` has a row for every question: the
    other forms need a turn at which the answer is known."""
    asked = [question for question in conversation.questions if question.category in form.categories]
    told = [_utterance(turn, form.captions) for turn in conversation.turns]
    if form.form == "questions":
        return [{**_asked(conversation, question), "conversation": told} for question in asked]
    places = {turn.id: place for place, turn in enumerate(conversation.turns)}
    rows = []
    until: dict[int, list[Values]] = {}
    for question in asked:
        if not question.evidence:
            continue
        trigger = max(places[id] for id in question.evidence)
        if form.form == "replay":
            session = conversation.turns[trigger].session
            read = [
                utterance for turn, utterance in zip(conversation.turns, told, strict=True) if turn.session <= session
            ]
            rows.append({**_asked(conversation, question), "conversation": until.setdefault(session, read)})
        elif form.form == "window":
            read = told[max(trigger - form.window, 0) : trigger + 1]
            rows.append({**_asked(conversation, question), "conversation": read})
        else:
            rows.append({**_asked(conversation, question), **_tuple(conversation.turns, told, trigger, form)})
    return rows


def _asked(conversation: Conversation, question: Question) -> Values:
    return {
        "id": f"{conversation.id}/{question.index}",
        "kind": "locomo",
        "conversation_id": conversation.id,
        "category": question.category,
        "category_name": CATEGORIES[question.category],
        "question": question.text,
        "answers": list(question.answers),
        "evidence": list(question.evidence),
    }


def _tuple(turns: Sequence[Turn], told: Sequence[Values], trigger: int, form: LocomoForm) -> Values:
    """Memory and new turns at turn number `trigger`; no turn is in both."""
    start = max(trigger - form.fact_turns + 1, 0)
    while turns[start].session < turns[trigger].session:
        start += 1
    known = turns[max(start - form.window, 0) : start]
    return {"memory": [_item(turn, form) for turn in known], "fact": list(told[start : trigger + 1])}


def _utterance(turn: Turn, captions: bool) -> Values:
    return {
        "speaker": turn.speaker,
        "text": turn.captioned(captions),
        "timestamp": turn.time,
        "dia_id": turn.id,
        "session": f"session_{turn.session}",
    }


def _item(turn: Turn, form: LocomoForm) -> Values:
    return {
        "id": turn.id,
        "key": "",
        "value": f"{turn.speaker}: {turn.captioned(form.captions)}",
        "kind": "turn",
        "tags": [],
        "sources": [turn.id],
        "created_at": turn.time,
        "version": 1,
        "namespace": turn.speaker if form.namespaces == "speaker" else "",
    }


@dataclass(frozen=True)
class _Part:
    """What one file is to hold, and how many questions were asked for."""

    name: str
    rows: list[Values]
    questions: int


def build_locomo(file: Path, output: Path, form: LocomoForm, *, on_progress: OnProgress | None = None) -> Report:
    """Write `locomo_train.jsonl` (rows of `form`), `locomo_val.jsonl` and `locomo_test.jsonl` (questions) to `output`.

    Raises DataError where the file is missing, does not fit, or lacks a conversation of Memory-R1's split.
    """
    conversations = read_conversations(str(file))
    questions: Any = form.model_copy(update={"form": "questions"})
    parts = []
    for split in ("train", "val", "test"):
        chosen = in_split(conversations, split)
        rows = [
            row for conversation in chosen for row in rows_of(conversation, form if split == "train" else questions)
        ]
        asked = [question for conversation in chosen for question in conversation.questions]
        parts.append(_Part(split, rows, sum(question.category in form.categories for question in asked)))
    notes = [", ".join(f"{part.questions} {part.name}" for part in parts) + f" questions of {_named(form)}"]
    notes += _about_training(parts[0], form)
    notes += [note for conversation in conversations for note in conversation.notes]
    files = [
        write_rows(output / f"locomo_{part.name}.jsonl", part.rows, len(part.rows), on_progress=on_progress)
        for part in parts
    ]
    return Report(tuple(files), tuple(notes))


def _named(form: LocomoForm) -> str:
    plain = sorted(set(form.categories))
    return f"categories {', '.join(map(str, plain))}" + ("" if ADVERSARIAL in plain else " (none is adversarial)")


def _about_training(part: _Part, form: LocomoForm) -> list[str]:
    if form.form == "questions":
        return []
    notes = [f"{part.questions - len(part.rows)} training questions have no turn at which to train and are left out"]
    if form.form == "tuples":
        whole = sum(set(_texts(row["evidence"])) <= _in_sight(row) for row in part.rows)
        notes.append(f"{whole} of {len(part.rows)} tuples hold all their evidence in memory and fact")
    return notes


def _in_sight(row: Values) -> set[str]:
    items: Any = row["memory"]
    turns: Any = row["fact"]
    return {item["id"] for item in items} | {turn["dia_id"] for turn in turns}


def _texts(values: object) -> list[str]:
    return list(values) if isinstance(values, list) else []
