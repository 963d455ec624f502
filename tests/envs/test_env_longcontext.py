"""The longcontext environment: every published form becomes a task, bad rows are told, rewards are combined."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from memfactory.components import RewardOptions
from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.envs.base import combine
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.errors import DataError
from memfactory.registry import DATASETS, ENVS, REWARDS
from memfactory.types import Task

EVAL_ROW = {"context": "Document 1:\nA\nb", "input": "Who?", "answers": ["Ada"], "num_docs": 50, "index": 7}
TRAIN_ROW = {
    "data_source": "hotpotqa",
    "prompt": [{"role": "user", "content": "Hello."}, {"role": "user", "content": "Who?"}],
    "context": "Text",
    "ability": "memory",
    "reward_model": {"style": "rule", "ground_truth": ["Ada", "Lovelace"]},
    "extra_info": {"index": 3, "question": "who?", "num_docs": 200},
}
FWE_ROW = {
    "index": 0,
    "input": "Which words?",
    "context": "... abc ...",
    "outputs": ["abc", "def"],
    "answer_prefix": " Answer: According to the text:",
    "length": 16000,
}
RULER_OWN = {
    "index": 4,
    "input": "Memorize the chain.\n\nVAR A = 1\nQuestion: none of these\nVAR B = VAR A\nQuestion: Find all variables.",
    "outputs": ["A", "B"],
    "length": 90,
}


class Given(Dataset):
    """Rows that a test hands over."""

    def __init__(self, values, **options):
        super().__init__(DatasetOptions(**options), Path())
        self.given = values

    def rows(self):
        return [
            value if isinstance(value, Row) else Row(value, f"rows.json row {number}")
            for number, value in enumerate(self.given, start=1)
        ]


def env(rewards=(), **options):
    return ENVS.get("longcontext")(ENVS.options("longcontext")(**options), rewards)


def task(values, **options):
    return env(**options).task(Row(values, "rows.json row 5"))


def problem(values, **options):
    with pytest.raises(DataError) as caught:
        task(values, **options)
    return str(caught.value)


def test_a_row_of_memagents_evaluation_files():
    found = task(EVAL_ROW)
    assert (found.id, found.question, found.answers, found.context) == ("7", "Who?", ("Ada",), "Document 1:\nA\nb")
    assert dict(found.meta) == {"kind": "qa", "num_docs": 50, "index": 7}


def test_a_row_of_memagents_training_files():
    found = task(TRAIN_ROW)
    assert (found.id, found.question, found.answers, found.context) == ("3", "Who?", ("Ada", "Lovelace"), "Text")
    assert dict(found.meta) == {"kind": "qa", "num_docs": 200, "index": 3}


def test_a_ruler_row_with_its_own_context():
    found = task(FWE_ROW)
    assert (found.id, found.question, found.answers) == ("0", "Which words?", ("abc", "def"))
    assert dict(found.meta) == {"kind": "ruler", "length": 16000, "index": 0}


def test_rulers_own_rows_end_in_the_question():
    found = task(RULER_OWN)
    assert found.question == "Question: Find all variables."
    assert found.context == "Memorize the chain.\n\nVAR A = 1\nQuestion: none of these\nVAR B = VAR A"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"answer_prefix": " Answer:"}, "ruler_qa"),
        ({"context": "Document 2:\nx\n\nDocument 1:\ny"}, "ruler_qa"),
        ({"answer_prefix": None}, "ruler"),
    ],
)
def test_rulers_question_answering_is_told_apart(changes, kind):
    assert task({**FWE_ROW, **changes}).meta["kind"] == kind


def test_default_metrics_follow_the_kinds_of_rows():
    rows = env()
    qa, fwe, ruler_qa = task(EVAL_ROW), task(FWE_ROW), task({**FWE_ROW, "answer_prefix": " Answer:"})
    assert rows.default_metrics([qa, qa]) == ("sub_em", "f1", "boxed_em", "em")
    assert rows.default_metrics([fwe]) == ("string_match_all",)
    assert rows.default_metrics([ruler_qa]) == ("string_match_part",)
    assert rows.default_metrics([fwe, qa]) == ("sub_em", "f1", "boxed_em", "em", "string_match_all")


def test_gold_answers_may_be_one_text_or_a_number():
    assert task({**EVAL_ROW, "answers": "Ada"}).answers == ("Ada",)
    assert task({**EVAL_ROW, "answers": [1961, 2.5]}).answers == ("1961", "2.5")


def test_ids_come_from_the_row_or_from_the_question():
    assert task({**EVAL_ROW, "id": "q-1"}).id == "q-1"
    assert task({**EVAL_ROW, "index": 7.0}).id == "7"
    without = {name: value for name, value in EVAL_ROW.items() if name != "index"}
    assert task(without).id == task({**without, "context": "other"}).id != task({**without, "input": "Why?"}).id


def test_own_field_names():
    row = {"q": "Who?", "text": "Text", "gold": {"short": "Ada"}, "n": 1}
    found = task(row, fields={"question": "q", "context": "text", "answers": "gold.short", "id": "n"})
    assert (found.id, found.question, found.answers, found.context) == ("1", "Who?", ("Ada",), "Text")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": None}, "rows.json row 5 has no question: field 'input' is null"),
        ({"input": 5}, "rows.json row 5: field 'input' should be a text, got the number 5"),
        ({"input": "  "}, "rows.json row 5: field 'input' should be a text, got an empty text"),
        ({"context": [4, 7]}, "rows.json row 5: field 'context' should be a text, got a list of 2"),
        ({"context": "half \ud800"}, "rows.json row 5: field 'context' should be a text, but character 5 is half of"),
        ({"answers": []}, "rows.json row 5: field 'answers' should hold at least one gold answer, got an empty list"),
        ({"answers": ["a", ""]}, "rows.json row 5: field 'answers[1]' should be a text, got an empty text"),
        ({"answers": ["a", True]}, "rows.json row 5: field 'answers[1]' should be a text, got true"),
        ({"answers": {"text": "a"}}, "rows.json row 5: field 'answers' should be a text, got an object with text"),
        ({"answers": float("nan")}, "rows.json row 5: field 'answers' should be a text, got the number nan"),
    ],
)
def test_a_bad_row_is_told_with_its_field(changes, message):
    assert problem({**EVAL_ROW, **changes}).startswith(message)


def test_a_missing_field_is_told_with_what_is_there():
    assert problem({"context": "x", "answers": ["y"]}) == (
        "rows.json row 5 has no question: expected 'input' or 'question' or 'prompt' or 'extra_info.question'; "
        "it has context, answers"
    )
    assert "has no text: expected 'context'" in problem({"input": "x", "answers": ["y"]})
    assert "has no gold answers: expected 'answers' or 'outputs'" in problem({"input": "x", "context": "y"})
    assert "has no question: expected 'q'; it has" in problem(EVAL_ROW, fields={"question": "q"})
    assert "field 'gold' should be a text or a number, got null" in problem(EVAL_ROW, fields={"id": "gold"})


def test_a_prompt_without_a_user_is_told():
    assert "field 'prompt' should be a text, or chat messages with one of role 'user', got a list of 1" in problem(
        {**TRAIN_ROW, "prompt": [{"role": "system", "content": "x"}]}
    )


def test_a_ruler_prompt_of_one_line_is_told():
    assert "there is no field 'context', and field 'input' is one line" in problem({**RULER_OWN, "input": "one line"})


def test_bad_rows_stop_the_run_and_say_how_to_skip_them():
    rows = [EVAL_ROW, {**EVAL_ROW, "answers": []}, Row({}, "rows.json line 3", "not JSON: oops")]
    with pytest.raises(DataError) as caught:
        env().tasks(Given(rows))
    assert str(caught.value).splitlines() == [
        "rows.json row 2: field 'answers' should hold at least one gold answer, got an empty list",
        "rows.json line 3: not JSON: oops",
        "skip_bad_rows: true leaves such rows out.",
    ]


def test_only_the_first_five_bad_rows_are_told():
    with pytest.raises(DataError) as caught:
        env().tasks(Given([{}] * 1000))
    assert len(str(caught.value).splitlines()) == 6


def test_skipped_rows_are_counted():
    found = env().tasks(Given([{}, EVAL_ROW, *[{}] * 9], skip_bad_rows=True))
    assert [task.id for task in found.tasks] == ["7"]
    assert len(found.skipped) == 10
    assert found.skipped[0].startswith("rows.json row 1 has no question")


def test_a_set_without_a_task_is_an_error():
    with pytest.raises(DataError, match="the dataset of Given gives no task: it has no rows"):
        env().tasks(Given([]))
    with pytest.raises(DataError, match=r"none of its 2 rows can be used; the first: rows\.json row 1 has no question"):
        env().tasks(Given([{}, {}], skip_bad_rows=True))


def test_ids_that_occur_again_get_numbers():
    rows = [{**EVAL_ROW, "index": index} for index in ("0", "1", "0", "0#2", "0", "1")]
    assert [task.id for task in env().tasks(Given(rows)).tasks] == ["0", "1", "0#3", "0#2", "0#4", "1#2"]


def test_a_file_becomes_tasks(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(EVAL_ROW) + "\n" + json.dumps({**EVAL_ROW, "input": ""}))
    dataset = DATASETS.get("file")(DATASETS.options("file")(path="rows.jsonl"), tmp_path)
    with pytest.raises(DataError, match=r"rows\.jsonl line 2: field 'input' should be a text, got an empty text"):
        env().tasks(dataset)


class Fixed(RewardFunction):
    """Scores that a test hands over."""

    def __init__(self, name, weight, scores):
        super().__init__(RewardOptions(weight=weight), {})
        self._name, self._scores = name, scores

    @property
    def name(self):
        return self._name

    def score(self, episodes):
        return self._scores[: len(episodes)]


def test_the_total_is_the_weighted_sum_and_parts_are_kept():
    rewards = [Fixed("right", 1.0, [1.0, 0.0, None]), Fixed("short", -0.5, [1.0, 0.5, 1.0])]
    found = env(rewards).score([Episode(Task("t", "Who?", ("Ada",)))] * 3)
    assert [reward.total for reward in found] == [0.5, -0.25, None]  # 1 - 0.5; 0 - 0.25; unknown
    assert [dict(reward.parts) for reward in found] == [
        {"right": 1.0, "short": 1.0},
        {"right": 0.0, "short": 0.5},
        {"right": None, "short": 1.0},
    ]


def test_an_unknown_part_of_weight_0_leaves_the_total_known():
    found = combine({"judge": None, "em": 1.0}, {"judge": 0.0, "em": 2.0})
    assert found.total == 2.0 and dict(found.parts) == {"judge": None, "em": 1.0}


def test_rewards_from_the_registry_score_episodes():
    rewards = [
        REWARDS.get(name)(REWARDS.options(name)(weight=weight), {}) for name, weight in (("em", 1), ("format", 2))
    ]
    (found,) = env(rewards).score([Episode(Task("t", "Who?", ("Ada",)), answer="\\boxed{ada}")])
    assert found.total == 3.0 and dict(found.parts) == {"em": 1.0, "format": 1.0}


def test_an_environment_without_a_reward_is_refused():
    with pytest.raises(ValidationError, match="rewards"):
        ENVS.options("longcontext")(rewards={})
