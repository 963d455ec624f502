"""Transcripts as the trainer writes them."""

import json
from types import MappingProxyType

import pytest

from memfactory.files.json_lines import json_line
from memfactory.transcripts import read_transcripts, write_transcripts
from memfactory.types import Group, Message, Reply, Reward, Task, Tokens, Trajectory, Turn


def group():
    asked = (Message("user", "Who?"),)
    trained = Turn("answer", asked, Reply("Ana", "stop", Tokens((1, 2, 3), (4, 5), (-0.5, -0.5))), True)
    helper = Turn("check", asked, Reply("ja ü", "length"), False)
    good = Trajectory(0, (trained, helper), "Ana", Reward(1.0, MappingProxyType({"boxed_em": 1.0})))
    unknown = Trajectory(1, (trained,), None, Reward(None, MappingProxyType({"boxed_em": None})))
    return Group(Task("t1", "Who?", ("Ana", "Anna")), (good, unknown))


def test_a_line_holds_question_rewards_advantage_and_every_turn(tmp_path):
    path = write_transcripts(tmp_path, 10, [group()], [{"answer": [0.7, None]}])
    assert path == tmp_path / "transcripts" / "step-000010.jsonl"
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first == {
        "step": 10,
        "task_id": "t1",
        "question": "Who?",
        "answers": ["Ana", "Anna"],
        "index": 0,
        "reward": {"total": 1.0, "parts": {"boxed_em": 1.0}},
        "advantage": {"answer": 0.7},
        "answer": "Ana",
        "turns": [
            {
                "step": "answer",
                "messages": [{"role": "user", "content": "Who?"}],
                "reply": "Ana",
                "stop": "stop",
                "trainable": True,
                "prompt_tokens": 3,
                "reply_tokens": 2,
            },
            {
                "step": "check",
                "messages": [{"role": "user", "content": "Who?"}],
                "reply": "ja ü",
                "stop": "length",
                "trainable": False,
                "prompt_tokens": None,
                "reply_tokens": None,
            },
        ],
    }
    assert second["reward"] == {"total": None, "parts": {"boxed_em": None}}
    assert second["advantage"] == {"answer": None}


def test_what_was_written_is_read_again(tmp_path):
    path = write_transcripts(tmp_path, 10, [group()], [{"answer": [0.7, None]}])
    first, second = read_transcripts(path)
    assert first.turns[0].messages == (Message("user", "Who?"),)
    assert first.answers == ("Ana", "Anna") and second.reward is None
    assert path.read_text() == "".join(json_line(row.to_json()) for row in (first, second))


def test_a_resumed_step_rewrites_its_file(tmp_path):
    write_transcripts(tmp_path, 10, [group(), group()], [{}, {}])
    path = write_transcripts(tmp_path, 10, [group()], [{}])
    assert len(path.read_text().splitlines()) == 2


def test_every_group_needs_its_advantages(tmp_path):
    with pytest.raises(ValueError):
        write_transcripts(tmp_path, 10, [group()], [])
