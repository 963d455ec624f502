"""The row of one answer that `infer` writes: the answer with its turns and memory, as one JSON object."""

from __future__ import annotations

from dataclasses import asdict

from memfactory.episode import Episode, TracedTurn, traced_turns
from memfactory.evaluation.samples import reading_json, turn_record, unfinished_turns
from memfactory.types import change_json, item_json


def answer_row(episode: Episode, configuration: str | None) -> dict[str, object]:
    """The row of a finished episode.

    `turns` are all turns behind the answer, including those of shared work (building a bank for several questions, for
    example), and `tokens` their sums (null: the engine counts none). `unfinished_thinking` counts
    the turns whose thinking never ended, if any turn thinks. With a memory bank, `items` are all of its items
    with their provenance, `operations` the changes of each turn, and `memory` only a view of the items.
    """
    traced = traced_turns(episode)
    unfinished = unfinished_turns([one.turn for one in traced])
    return {
        "id": episode.task.id,
        "question": episode.task.question,
        "answer": episode.answer,
        "memory": episode.memory,
        **reading_json(episode.reading),
        **({} if unfinished is None else {"unfinished_thinking": unfinished}),
        **_bank_values(episode, traced),
        "turns": [{**asdict(turn_record(one.turn)), **({"shared": True} if one.shared else {})} for one in traced],
        "tokens": _tokens(traced),
        **({} if configuration is None else {"configuration": configuration}),
    }


def _bank_values(episode: Episode, traced: list[TracedTurn]) -> dict[str, object]:
    if episode.bank is None:
        return {}
    return {
        "items": [item_json(item) for item in episode.bank.list()],
        "operations": [
            {"turn": number, **change_json(change)}
            for number, one in enumerate(traced, start=1)
            for change in one.changes
        ],
        "retrieved": [item_json(item) for item in episode.retrieved],
        "citations": None if episode.citations is None else list(episode.citations),
    }


def _tokens(traced: list[TracedTurn]) -> dict[str, int] | None:
    lengths = [one.turn.lengths for one in traced if one.turn.lengths is not None]
    if len(lengths) < len(traced):
        return None
    return {"prompt": sum(prompt for prompt, _ in lengths), "reply": sum(reply for _, reply in lengths)}
