"""A conversation of LoCoMo's shape, made up and as small as can be."""

from __future__ import annotations


def conversation(name: str) -> dict[str, object]:
    """A LoCoMo conversation of two sessions with a question that each of its last turns answers."""
    turns = {
        f"session_{number}": [
            {"speaker": speaker, "dia_id": f"D{number}:{place}", "text": f"{speaker} keeps {number * place} bees."}
            for place, speaker in ((1, "Ann"), (2, "Bob"))
        ]
        for number in (1, 2)
    }
    dates = {f"session_{number}_date_time": f"1:05 pm on {number} May, 2023" for number in (1, 2)}
    questions = [{"question": "How many bees?", "answer": "4", "evidence": ["D2:2"], "category": 4}] * 2
    dialogue = {"speaker_a": "Ann", "speaker_b": "Bob", **dates, **turns}
    return {"sample_id": name, "conversation": dialogue, "qa": questions, "event_summary": {}}
