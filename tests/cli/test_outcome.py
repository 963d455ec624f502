"""The last lines of a training: what was won, where the pictures are, and what to do next."""

import json
import re

import pytest

from memfactory.api.training import TrainResult
from memfactory.cli.app import run
from memfactory.cli.outcome import outcome_lines
from memfactory.evaluation.results import DatasetResult, EvalHistory, metric_result

CONFIG = "agent: {name: AGENT}\ndata: {eval: EVAL}\n"


def result(*scores, data_hash="same"):
    answers = {f"q{number}": [score] for number, score in enumerate(scores)}
    means = {question: values[0] for question, values in answers.items()}
    return DatasetResult({"em": metric_result(answers, 1)}, len(scores), 1, 0.0, data_hash, {"em": means})


@pytest.fixture
def lines(tmp_path):
    def shown(evaluations, *, agent="memory_agent", sets="{held: {name: facts}}", interrupted=False):
        (tmp_path / "config.yaml").write_text(CONFIG.replace("AGENT", agent).replace("EVAL", sets))
        history = EvalHistory()
        for step, results in evaluations.items():
            history.add(step, results)
        if evaluations:
            history.save(tmp_path / "eval.json")
        found = outcome_lines(TrainResult(tmp_path), interrupted=interrupted)
        return [line.replace(str(tmp_path), "RUN") for line in found]

    return shown


NEXT = ["Next: memfactory view RUN", '      memfactory infer RUN --document FILE --question "..."']


def test_two_evaluations_are_compared_question_by_question(lines, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "reward.png").write_bytes(b"")
    told = lines({0: {"held": result(0, 0, 0, 1)}, 60: {"held": result(0, 1, 1, 1)}})
    # 1/4, then 3/4: two of four questions gained 1.
    pattern = r"held, em: 0\.250 \[.*\] before, 0\.750 \[.*\] after step 60, difference \+0\.500 \[.*\] \(4 questions\)"
    assert re.fullmatch(pattern, told[0])
    assert told[1:] == ["Figures: RUN/figures (reward.png)", *NEXT, "      memfactory eval RUN"]


def test_a_single_question_has_no_interval_and_no_plural(lines):
    told = lines({0: {"held": result(0)}, 3: {"held": result(1)}})
    assert told[0] == "held, em: 0.000 before, 1.000 after step 3, difference +1.000 (1 question)"


def test_questions_that_changed_are_not_paired(lines):
    told = lines({0: {"held": result(0)}, 3: {"held": result(1, data_hash="other")}})
    assert told[0] == "held, em: 0.000 before, 1.000 after step 3 (1 question, not the same ones)"


def test_further_evaluation_sets_are_counted(lines):
    told = lines({3: {name: result(1) for name in "abcde"}})
    assert told[0] == "a, em: 1.000 after step 3 (1 question)"
    assert told[3] == "2 more evaluation sets are in RUN/eval.json" and len(told) == 7


def test_without_evaluations_eval_asks_for_data(lines):
    told = lines({}, sets="{}")
    assert told == ["Evaluation: none in this run", *NEXT, "      memfactory eval RUN --data FILE"]


def test_an_agent_with_a_bank_is_asked_about_a_conversation(lines):
    assert '      memfactory infer RUN --conversation FILE --question "..."' in lines({}, agent="memory_r1")


def test_an_interrupted_run_is_resumed_first(lines, tmp_path):
    told = lines({0: {"held": result(0)}}, interrupted=True)
    assert told == [
        "held, em: 0.000 before training (1 question)",
        "Next: memfactory train RUN --resume",
        "      memfactory view RUN",
    ]
    (tmp_path / "checkpoints" / "step-2").mkdir(parents=True)
    assert lines({0: {"held": result(0)}}, interrupted=True)[-1] == "      memfactory eval RUN"


def test_training_ends_with_its_outcome(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.yaml").write_text(
        "model: {path: tiny, cpu_threads: 1}\ndata: {train: rows.jsonl}\ntrain: {name: sft, steps: 1}\ntrackers: []\n"
    )
    assert run(["train", "x.yaml", "--output", "out"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "Done: out" and told[1] == "Evaluation: none in this run"
    assert told[-1] == "      memfactory eval out --data FILE"
