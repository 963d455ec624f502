"""The dataset `locomo`, and `memfactory data locomo`: LoCoMo's questions in Memory-R1's split (arXiv 2508.19828).

Memory-R1's 152 / 81 / 1307 questions are whole conversations: it trains on one, validates on another, and tests on the
others. A row has one of four forms, where t is the last turn of the question's evidence:

- `questions`: the whole conversation, to be read into an empty bank, and the question;
- `replay`: the conversation up to the end of t's session, to be read into an empty bank;
- `window`: the last turns up to t, to be read into an empty bank;
- `tuples`: a bank before t (`memory`) and the new turns up to t (`fact`). Memory-R1's bank is built by a language
  model; this one holds the raw turns before, one in each item.
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
    """The form of a row."""

    form: Form = "questions"
    """The conversation in a row: questions (all of it), replay (until the answer is known), window (the last turns
    until then) or tuples (a bank and the last turns)."""
    categories: list[int] = Field([1, 2, 3, 4], min_length=1)
    """Question categories to keep; 5 is adversarial: the conversation does not answer the question."""
    captions: bool = True
    """Append the captions of shared images to the texts of turns."""
    window: int = Field(50, ge=0)
    """Turns in the bank of a tuple, or before the last turn of a window (Memory-R1: 50 in its algorithm, 24 in its
    text)."""
    fact_turns: int = Field(4, ge=1)
    """The largest number of new turns in a tuple, all of one session."""
    namespaces: Literal["joint", "speaker"] = "joint"
    """Namespaces of a tuple's bank: one for all items (joint), or one for each speaker."""

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
    """train (conv-26), val (conv-30), test (the others), all, or ids of conversations."""


@DATASETS.register("locomo")
class LocomoDataset(Dataset[LocomoOptions]):
    """LoCoMo: questions about conversations of many sessions, in Memory-R1's split by conversation."""

    @property
    def source(self) -> str:
        split = self.options.split
        return f"{self.options.path} ({split if isinstance(split, str) else ', '.join(split)})"

    def rows(self) -> Sequence[Row]:
        """One row for each question. Rows of one conversation share one list of turns, which is large.

        With `skip_bad_rows`, a conversation or question that does not fit, of any split, is a row with a problem.
        """
        path, problems = self.options.path, list[str]()
        collected = problems if self.options.skip_bad_rows else None
        conversations = in_split(read_conversations(path, self.base_dir, collected), self.options.split)
        all_values = [values for conversation in conversations for values in rows_of(conversation, self.options)]
        rows = [Row(values, f"{path} {values['id']}") for values in all_values[: self.options.limit]]
        return [*(Row({}, path, problem.removeprefix(f"{path} ")) for problem in problems), *rows]


def in_split(conversations: Sequence[Conversation], split: str | Sequence[str]) -> list[Conversation]:
    """The conversations of a split, or those with the ids `split`. Raises DataError for an unknown id."""
    by_id = {conversation.id: conversation for conversation in conversations}
    if split == "all":
        return list(conversations)
    if split == "test":
        return [conversation for conversation in conversations if conversation.id not in (TRAIN, VALIDATION)]
    ids = [{"train": TRAIN, "val": VALIDATION}.get(split, split)] if isinstance(split, str) else list(split)
    for id in ids:
        if id not in by_id:
            raise DataError(f"split {split}: {unknown('conversation', id, [*by_id, *SPLITS])}")
    return [by_id[id] for id in dict.fromkeys(ids)]


def rows_of(conversation: Conversation, form: LocomoForm) -> list[Values]:
    """The rows of one conversation in the order of its questions. Only `questions` has a row for every question: the
    other forms need evidence."""
    selected = [question for question in conversation.questions if question.category in form.categories]
    utterances = [_utterance(turn, form.captions) for turn in conversation.turns]
    if form.form == "questions":
        return [{**_question_values(conversation, question), "conversation": utterances} for question in selected]
    places = {turn.id: place for place, turn in enumerate(conversation.turns)}
    rows = []
    until_session: dict[int, list[Values]] = {}
    for question in selected:
        if not question.evidence:
            continue
        trigger = max(places[id] for id in question.evidence)
        values = _question_values(conversation, question)
        if form.form == "replay":
            session = conversation.turns[trigger].session
            read = [
                utterance
                for turn, utterance in zip(conversation.turns, utterances, strict=True)
                if turn.session <= session
            ]
            rows.append({**values, "conversation": until_session.setdefault(session, read)})
        elif form.form == "window":
            rows.append({**values, "conversation": utterances[max(trigger - form.window, 0) : trigger + 1]})
        else:
            rows.append({**values, **_tuple(conversation.turns, utterances, trigger, form)})
    return rows


def _question_values(conversation: Conversation, question: Question) -> Values:
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


def _tuple(turns: Sequence[Turn], utterances: Sequence[Values], trigger: int, form: LocomoForm) -> Values:
    """Memory and new turns at turn number `trigger`; no turn is in both."""
    start = max(trigger - form.fact_turns + 1, 0)
    while turns[start].session < turns[trigger].session:
        start += 1
    before = turns[max(start - form.window, 0) : start]
    return {"memory": [_item(turn, form) for turn in before], "fact": list(utterances[start : trigger + 1])}


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
    """The rows of one file, and the number of questions in its split."""

    name: str
    rows: list[Values]
    questions: int


def build_locomo(file: Path, output: Path, form: LocomoForm, *, on_progress: OnProgress | None = None) -> Report:
    """Write `locomo_train.jsonl` (rows of `form`), `locomo_val.jsonl` and `locomo_test.jsonl` (questions) to `output`.

    Raises DataError if the file is missing, does not fit, or lacks a conversation of Memory-R1's split.
    """
    conversations = read_conversations(str(file))
    questions: Any = form.model_copy(update={"form": "questions"})
    parts = []
    for split in ("train", "val", "test"):
        chosen = in_split(conversations, split)
        rows = [
            row for conversation in chosen for row in rows_of(conversation, form if split == "train" else questions)
        ]
        all_questions = [question for conversation in chosen for question in conversation.questions]
        parts.append(_Part(split, rows, sum(question.category in form.categories for question in all_questions)))
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
    notes = [f"{part.questions - len(part.rows)} training questions have no evidence and are left out"]
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
