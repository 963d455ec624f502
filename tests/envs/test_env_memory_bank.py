"""The environments of memory agents: what an attempt is worth, what credits a step, what stays unknown."""

from itertools import product
from pathlib import Path

import pytest
from pydantic import ValidationError

from memfactory.build import build_rewards
from memfactory.config import load_config
from memfactory.config.grpo import GrpoOptions
from memfactory.data.base import Row
from memfactory.engines.scripted import ScriptedEngine
from memfactory.envs.base import combine
from memfactory.episode import Episode
from memfactory.errors import ConfigError, EngineError
from memfactory.memory.bank import BankSource
from memfactory.policy.batch import step_advantages, training_turns
from memfactory.registry import ENVS, REWARDS
from memfactory.types import Group, MemoryItem, Message, Reply, Task, Tokens, Trajectory, Turn

TASK = Task("t", "Who?", ("Ada",), evidence=("D1:1",))
RIGHT, WRONG = "Ada", "Bob"


def env(name="memory_bank", engines=None, **options):
    checked = ENVS.options(name)(**options)
    return ENVS.get(name)(checked, build_rewards(checked.rewards, engines or {}))


def attempt(answer=None, retrieved=(), /, failure=None, **checks):
    return Episode(TASK, answer=answer, retrieved=retrieved, failure=failure, checks=checks)


def total(episode, **options):
    (reward,) = env(**options).score([episode])
    return reward.total


def task(evidence=(), **meta):
    row = {"q": "Who?", "a": "Ada", "evidence": list(evidence), **meta}
    return env().task(Row(row, "rows.json row 1"))


def test_the_right_answer_counts_and_form_a_tenth():
    assert total(attempt(RIGHT, extract=[1.0], update=[0.5])) == pytest.approx(1.075)  # 1 + 0.1 x 0.75
    assert total(attempt(WRONG, extract=[1.0], update=[1.0])) == pytest.approx(0.1)
    assert total(attempt(None)) == 0.0


def test_empty_lists_earn_nothing():
    # The reference's full reward for {"memory_list": []} and {"operations": []}: 0.5 each, whatever is answered.
    assert total(attempt(WRONG, extract=[0.0], update=[0.0], answer=[1.0])) == 0.0
    assert total(attempt(WRONG, extract=[0.0], answer=[1.0])) == 0.0


def test_form_alone_is_never_the_best():
    # Over every mix of answers and marks, whoever earns most answers right, and no right answer earns less than a
    # wrong one: at worst 1 + 0 against 0 + 0.1.
    marks = (0.0, 0.5, 1.0)
    attempts = [attempt(said, extract=[a], update=[b]) for said, a, b in product((RIGHT, WRONG, None), marks, marks)]
    totals = [reward.total for reward in env().score(attempts)]
    right = [value for value, episode in zip(totals, attempts, strict=True) if episode.answer == RIGHT]
    wrong = [value for value, episode in zip(totals, attempts, strict=True) if episode.answer != RIGHT]
    assert min(right) == 1.0 and max(wrong) == pytest.approx(0.1)


def test_choosing_evidence_counts_where_memories_are_chosen():
    gold, other = MemoryItem("a", "", "x", sources=("D1:1",)), MemoryItem("b", "", "y", sources=("D2:2",))
    found = env("rerank").score(
        [
            attempt(RIGHT, (other, gold), rerank=[1.0], extract=[0.0]),
            attempt(WRONG, (gold,), rerank=[0.0], extract=[1.0]),
            attempt(WRONG, (other,) * 5 + (gold,), rerank=[1.0]),  # the sixth does not count
        ]
    )
    assert [reward.total for reward in found] == pytest.approx([2.1, 1.0, 0.1])
    assert dict(found[0].parts) == {"evidence_recall": 1.0, "em": 1.0, "memory_format": 1.0}


def test_steps_are_credited_by_parts_of_their_own():
    steps = {"extract": {"evidence_kept": 2.0, "memory_format": 1.0}, "answer": {"em": 1.0}}
    bank = BankSource().open([MemoryItem("a", "", "x", sources=("D1:1",))])
    episode = Episode(TASK, answer=WRONG, bank=bank, checks={"extract": [0.5]})
    scored = env(rewards={"em": 1.0, "memory_format": 0.1, "evidence_kept": 0}, steps=steps)
    (found,) = scored.score([episode])
    # Total: 1 x 0 + 0.1 x 0.5, the part of weight 0 left out; extract: 2 x 1 + 1 x 0.5.
    assert found.total == pytest.approx(0.05)
    assert dict(found.steps) == {"extract": 2.5, "answer": 0.0}
    assert (found.of_step("extract"), found.of_step("update")) == (2.5, found.total)


def test_an_unknown_part_makes_unknown_what_it_counts_in_and_nothing_else():
    steps = {"extract": {"judge": 1.0}, "update": {"em": 1.0}, "answer": {"judge": 0.0, "em": 2.0}}
    found = combine({"judge": None, "em": 1.0}, {"judge": 1.0, "em": 1.0}, steps)
    assert found.total is None
    assert dict(found.steps) == {"extract": None, "update": 1.0, "answer": 2.0}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            {"extract": {"f1": 1.0}},
            "steps.extract weighs f1, but `rewards` has em, memory_format; give it the weight 0",
        ),
        ({"extract": {}}, "steps.extract names no reward; without the key, the total credits the step"),
    ],
)
def test_steps_that_name_no_reward_are_told(steps, message):
    with pytest.raises(ValidationError, match=message):
        env(steps=steps)


def test_a_config_tells_where_its_steps_are_wrong(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: tiny\nagent: memory_agent\nenv: {name: memory_bank, steps: {extract: {f1: 1.0}}}\n"
    )
    with pytest.raises(ConfigError, match=r"run\.yaml:3: env: steps\.extract weighs f1"):
        load_config(tmp_path / "run.yaml")


def test_an_attempt_that_failed_is_unknown_and_no_judge_is_asked():
    engine = ScriptedEngine(lambda messages, sampling: "yes", tokens=False)
    judged = env(engines={"judge": engine}, rewards={"judge": 1.0, "em": 0.5}, steps={"extract": {"em": 1.0}})
    lost, played = judged.score([attempt(WRONG, failure="HTTP 500"), attempt(RIGHT)])
    assert (lost.total, dict(lost.parts), dict(lost.steps)) == (
        None,
        {"judge": None, "em": None},
        {"extract": None},
    )
    assert (played.total, dict(played.steps)) == (1.5, {"extract": 1.0})
    assert len(engine.requests) == 1
    (alone,) = judged.score([attempt(WRONG, failure="HTTP 500")])
    assert alone.total is None and len(engine.requests) == 1


def test_an_outage_is_unknown_and_no_verdict_is_left_over_from_another_attempt():
    # The reference scores with the verdict of the sample before, or with "wrong", when its judge cannot be reached.
    def reply(messages, sampling):
        if "Carol" in messages[0].content:
            raise EngineError("HTTP 500")
        return "yes"

    judged = env(engines={"judge": ScriptedEngine(reply, tokens=False)}, rewards={"judge": 1.0})
    answers = ("Ada", "Carol", "Ada Lovelace")
    assert [reward.total for reward in judged.score([attempt(answer) for answer in answers])] == [1.0, None, 1.0]
    assert [reward.total for reward in judged.score([attempt("Carol"), attempt("Ada")])] == [None, 1.0]


def test_verdicts_of_equal_answers_are_asked_for_once():
    engine = ScriptedEngine(lambda messages, sampling: "yes", tokens=False)
    judged = env(engines={"judge": engine}, rewards={"judge": 1.0})
    assert [reward.total for reward in judged.score([attempt("Ada")] * 16)] == [1.0] * 16
    assert len(engine.requests) == 1


def turn(step):
    return Turn(step, (Message("user", "x"),), Reply("y", "stop", Tokens((1,), (2,), (-1.0,))), True)


def group_of(*episodes, **options):
    rewards = env(**options).score(episodes)
    turns = (turn("extract"), turn("update"))
    return Group(TASK, tuple(Trajectory(n, turns, e.answer, r) for n, (e, r) in enumerate(zip(episodes, rewards))))


@pytest.mark.parametrize("normalize", ["std", "population_std", "batch_std", "mean", "none"])
def test_a_group_of_one_attempt_has_no_advantage_and_no_nan(normalize):
    group = group_of(attempt(RIGHT, extract=[1.0]))
    options = GrpoOptions(normalize=normalize)
    assert step_advantages(group, options) == {"extract": [0.0], "update": [0.0]}
    assert training_turns([group], options) == []


def test_steps_of_their_own_credit_and_the_total_train_apart():
    # Extraction goes by evidence alone, which is the same in both: it trains nothing. The update goes by the answer.
    bank = BankSource().open([MemoryItem("a", "", "x", sources=("D1:1",))])
    episodes = [Episode(TASK, answer=answer, bank=bank) for answer in (RIGHT, WRONG)]
    options = {"rewards": {"em": 1.0, "evidence_kept": 0}, "steps": {"extract": {"evidence_kept": 1.0}}}
    turns = training_turns([group_of(*episodes, **options)], GrpoOptions(normalize="none"))
    assert [(turn.step, turn.advantage) for turn in turns] == [("update", 0.5), ("update", -0.5)]


def test_default_metrics_follow_the_rows():
    locomo = {"kind": "locomo", "category": 2}
    plain, known, talk = task(), task(["D1:1"]), task(["D1:1"], **locomo)
    bank, rerank = env(), env("rerank")
    assert bank.default_metrics([plain, known]) == ("em", "f1")
    assert bank.default_metrics([known]) == ("em", "f1", "evidence_kept")
    assert rerank.default_metrics([known]) == ("evidence_recall", "em", "f1")
    assert rerank.default_metrics([known, plain]) == ("em", "f1")
    assert bank.default_metrics([task((), **locomo), talk]) == ("locomo_f1", "mem0_f1", "bleu1", "em")
    assert bank.default_metrics([talk, known]) == ("em", "f1", "evidence_kept")
    named = {*bank.default_metrics([talk]), *rerank.default_metrics([known])}
    assert named <= set(REWARDS.names())


@pytest.mark.parametrize("name", ["memory_bank", "rerank"])
def test_the_shipped_environments_say_what_their_defaults_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    (tmp_path / "run.yaml").write_text(f"model: tiny\nagent: memory_agent\nenv: {name}\n")
    shipped = load_config(tmp_path / "run.yaml").config.env.options
    assert shipped == ENVS.options(name)()
