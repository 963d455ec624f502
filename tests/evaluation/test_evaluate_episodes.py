"""Episodes of an evaluation, their records and results, over a scripted engine."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from math import sqrt
from types import SimpleNamespace

import pytest

from memfactory.components import ModuleOptions, RewardOptions
from memfactory.data.digest import data_hash
from memfactory.dialogue import Agent, Ask, Module, Shared
from memfactory.engines.scripted import ScriptedEngine
from memfactory.envs.base import Environment, EnvironmentOptions
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.errors import ConfigError, DataError, EngineError
from memfactory.evaluation.collector import UnknownScores
from memfactory.evaluation.episodes import evaluate_tasks, play_episodes
from memfactory.evaluation.records import RecordFile, read_records
from memfactory.evaluation.samples import WHOLE_ITEMS, BankRecord, SampleRecord, record
from memfactory.evaluation.settings import EvaluationSettings
from memfactory.memory.bank import BankSource
from memfactory.play import PlaySettings, Sampler, play
from memfactory.registry import REWARDS
from memfactory.types import MemoryItem, Message, Reply, Task, Utterance
from scripted_stack import scripted_stack


class Echo(Module):
    """Asks the question; the reply is the answer and the memory."""

    steps = ("answer",)

    def dialogue(self, episode):
        reply = yield Ask("answer", (Message("user", episode.task.question),), 8)
        episode.answer = episode.memory = reply.text


class EchoAgent(Agent):
    def dialogue(self, episode):
        yield from self.modules["echo"].play(episode)


class Exact(RewardFunction):
    name = "exact"

    def score(self, episodes):
        return [float(episode.answer in episode.task.answers) for episode in episodes]


class JudgeOptions(RewardOptions):
    engine: str = "judge"


class Judge(RewardFunction):
    """Knows no score for answers with a question mark, unless it is `mended`."""

    name = "verdict"
    Options = JudgeOptions
    asks_a_model = True

    def __init__(self, *, mended=False):
        super().__init__(JudgeOptions(), {})
        self.mended = mended
        self.sizes = []

    def score(self, episodes):
        self.sizes.append(len(episodes))
        return [None if "?" in episode.answer and not self.mended else 0.5 for episode in episodes]


class Quiz(Environment):
    def task(self, row):
        raise NotImplementedError

    def default_metrics(self, tasks):
        return ("exact",)


AGENT = EchoAgent(None, {"echo": Echo(ModuleOptions(), None)})
TASKS = [Task("a", "one", ("1",)), Task("b", "two", ("2",)), Task("c", "three", ("3",))]


def quiz(*rewards):
    return Quiz(EnvironmentOptions(), [Exact(RewardOptions(), {}), *rewards])


def evaluate(engines, tasks=TASKS, *, agent=AGENT, env=None, records=None, on_progress=None, **settings):
    """The result of `tasks` in the quiz, by default."""
    stack = scripted_stack(agent, env or quiz(), engines)
    return evaluate_tasks(stack, tasks, EvaluationSettings(**settings), records=records, on_progress=on_progress)


def answering(answers):
    """An engine that gives each question its answers in turn, one a sample."""
    replies = {question: iter(texts) for question, texts in answers.items()}
    return {"policy": ScriptedEngine(lambda messages, sampling: next(replies[messages[0].content]))}


def coin(messages, sampling):
    return messages[0].content if sampling.seed % 2 else "?"


def coins():
    return {"policy": ScriptedEngine(coin)}


def test_avg_at_2_of_three_questions_by_hand():
    # Right: a 2 of 2, b 1 of 2, c 0 of 2. Mean 1/2, question sd 1/2, standard error 1/2 / sqrt(3). pass@2: (1+1+0)/3.
    engines = answering({"one": ["1", "1"], "two": ["2", "x"], "three": ["x", "y"]})
    result = evaluate(engines, samples=2)
    exact = result.metrics["exact"]
    assert exact.mean == 0.5
    assert exact.standard_error == pytest.approx(0.5 / sqrt(3), rel=1e-12)
    assert (exact.n, exact.k, exact.unknown) == (3, 2, 0)
    assert exact.pass_at == {1: 0.5, 2: pytest.approx(2 / 3, rel=1e-12)}
    assert result.by_question == {"exact": {"a": 1.0, "b": 0.5, "c": 0.0}}
    assert (result.questions, result.samples, result.truncated) == (3, 2, 0.0)


def test_the_fraction_of_cut_replies_is_reported():
    cut = {
        "policy": ScriptedEngine(lambda messages, _: Reply("1", "length" if messages[0].content == "one" else "stop"))
    }
    result = evaluate(cut)
    assert result.truncated == 1 / 3


def test_no_turn_of_an_evaluation_is_trainable():
    engine = ScriptedEngine(lambda *_: "1", tokens=False)
    stack = scripted_stack(AGENT, quiz(), {"policy": engine})
    (episode,) = play_episodes(stack, [(TASKS[0], 0)], EvaluationSettings())
    assert not episode.turns[0].trainable


def test_a_window_holds_back_later_episodes():
    engine = ScriptedEngine(lambda *_: "1")
    episodes = [Episode(TASKS[0], index=index) for index in range(5)]
    under_way = []
    for _ in play(Sampler(AGENT, {"policy": engine}), episodes, PlaySettings(frozen=True, window=2)):
        under_way.append(len(engine.requests))
    # Two begin and both end; two more; the fifth.
    assert under_way == [2, 2, 4, 4, 5]


def test_every_sample_has_its_own_seed_whatever_else_is_played():
    alone, together = coins(), coins()
    evaluate(alone, TASKS[2:], samples=4, seed=7)
    evaluate(together, samples=4, seed=7, window=5)
    seeds = [sampling.seed for messages, sampling in together["policy"].requests if messages[0].content == "three"]
    assert seeds == [sampling.seed for _, sampling in alone["policy"].requests]
    assert len({sampling.seed for _, sampling in together["policy"].requests}) == 12


def test_unknown_scores_are_counted_and_left_out():
    # b's answer is unknown to the judge: 1 of 3.
    engines = answering({"one": ["1"], "two": ["?"], "three": ["3"]})
    verdict = evaluate(engines, env=quiz(Judge()), metrics=("verdict",), max_unknown=0.4).metrics["verdict"]
    assert (verdict.mean, verdict.n, verdict.unknown) == (0.5, 2, 1)


def test_too_many_unknown_scores_fail_the_dataset():
    engines = answering({"one": ["1"], "two": ["?"], "three": ["3"]})
    with pytest.raises(UnknownScores, match=r"1 of 3 scores of 'verdict' are unknown: .* a fraction of 0.3"):
        evaluate(engines, env=quiz(Judge()), metrics=("verdict",), max_unknown=0.3)


def test_an_unknown_metric_is_reported():
    with pytest.raises(ConfigError, match="no reward is called 'exactt'"):
        evaluate(coins(), metrics=("exactt",))


def test_tasks_that_share_an_id_are_refused():
    with pytest.raises(DataError, match="Several tasks have the id a"):
        evaluate(coins(), [TASKS[0], TASKS[0]])


def test_progress_ends_at_all_episodes():
    reports = []
    evaluate(coins(), samples=2, on_progress=lambda *counts: reports.append(counts))
    assert reports[0] == (0, 6) and reports[-1] == (6, 6)


def evaluate_into(path, engines, *, samples=2, fingerprint=None, metrics=(), judge=None, window=128):
    with RecordFile(path, "quiz", fingerprint or {"model": "tiny", "judge": None}) as records:
        env = quiz(*([judge] if judge else []))
        settings = {"samples": samples, "seed": 3, "metrics": metrics, "max_unknown": 1.0, "window": window}
        return evaluate(engines, env=env, records=records, **settings)


def test_a_record_holds_question_answer_scores_and_turns(tmp_path):
    path = tmp_path / "quiz.jsonl"
    evaluate_into(path, answering({"one": ["1"], "two": ["x"], "three": ["3"]}), samples=1)
    header, first, *_ = map(json.loads, path.read_text().splitlines())
    assert header == {"fingerprint": {"model": "tiny"}}
    # "user\none\n" is 9 bytes and ids; the reply "1" is one byte and the end token.
    assert first == {
        "dataset": "quiz",
        "task_id": "a",
        "sample": 0,
        "question": "one",
        "answers": ["1"],
        "answer": "1",
        "memory": "1",
        "scores": {"exact": 1.0},
        "turns": [{"step": "answer", "text": "1", "stop": "stop", "prompt_tokens": 9, "reply_tokens": 2}],
    }


def test_recorded_samples_are_not_played_again(tmp_path):
    path = tmp_path / "quiz.jsonl"
    first = evaluate_into(path, coins())
    silent = {"policy": ScriptedEngine(lambda *_: pytest.fail("asked again"))}
    assert evaluate_into(path, silent) == first


def test_more_samples_play_only_the_further_ones(tmp_path):
    path = tmp_path / "quiz.jsonl"
    evaluate_into(path, coins(), samples=2)
    engines = coins()
    more = evaluate_into(path, engines, samples=4)
    assert len(engines["policy"].requests) == 6
    assert more == evaluate_into(tmp_path / "fresh.jsonl", coins(), samples=4)


def test_a_metric_requested_later_is_scored_from_the_records(tmp_path):
    path = tmp_path / "quiz.jsonl"
    evaluate_into(path, coins())
    silent = {"policy": ScriptedEngine(lambda *_: pytest.fail("asked again"))}
    judged = evaluate_into(
        path,
        silent,
        metrics=("exact", "verdict"),
        judge=Judge(mended=True),
        fingerprint={"model": "tiny", "judge": "j"},
    )
    assert judged.metrics["verdict"].mean == 0.5
    assert all(set(record.scores) == {"exact", "verdict"} for record in read_records(path))
    with pytest.raises(ConfigError, match="judge was j, now other"):
        RecordFile(path, "quiz", {"model": "tiny", "judge": "other"})


def test_scores_that_stay_unknown_are_not_written_again(tmp_path):
    path = tmp_path / "quiz.jsonl"
    evaluate_into(path, coins(), metrics=("verdict",), judge=Judge())
    before = path.read_text()
    again = evaluate_into(path, coins(), metrics=("verdict",), judge=Judge())
    assert again.metrics["verdict"].unknown > 0 and path.read_text() == before


def test_scores_by_an_old_rule_never_come_back(tmp_path):
    path = tmp_path / "quiz.jsonl"
    evaluate_into(path, coins())
    with RecordFile(path, "quiz", {"model": "tiny"}) as first:
        first.score_by({"exact": "the rule"})
        held = first.get("a", 0)
        assert held.scores == {}
        # A kill or a limit ends it here: the other samples still hold scores of an unknown rule.
        first.add(replace(held, scores={"exact": 0.25}))
    with RecordFile(path, "quiz", {"model": "tiny"}) as again:
        again.score_by({"exact": "the rule"})
        assert again.get("a", 0).scores == {"exact": 0.25}
        assert [again.get("a", 1).scores, again.get("b", 0).scores] == [{}, {}]
    assert [record.scores for record in read_records(path) if record.scores] == [{"exact": 0.25}]


def test_unknown_scores_are_computed_again(tmp_path):
    path = tmp_path / "quiz.jsonl"
    down = evaluate_into(path, coins(), metrics=("verdict",), judge=Judge())
    assert down.metrics["verdict"].unknown > 0
    up = evaluate_into(path, {}, metrics=("verdict",), judge=Judge(mended=True))
    assert up.metrics["verdict"].unknown == 0 and up.metrics["verdict"].n == 3


def test_a_known_score_stays_while_another_is_computed_again(tmp_path):
    scores = {"exact": 0.75, "verdict": None}
    held = SampleRecord("quiz", "a", 0, "one", ("1",), "x", "", scores, ())
    with RecordFile(tmp_path / "quiz.jsonl", "quiz") as records:
        records.add(held)
        judged = quiz(Judge(mended=True))
        result = evaluate({}, TASKS[:1], env=judged, metrics=("exact", "verdict"), records=records)
    assert {name: metric.mean for name, metric in result.metrics.items()} == {"exact": 0.75, "verdict": 0.5}


def test_a_judge_scores_finished_episodes_together(tmp_path):
    judge = Judge(mended=True)
    evaluate_into(tmp_path / "quiz.jsonl", coins(), samples=7, metrics=("verdict",), judge=judge)
    # 21 episodes: sixteen, then five.
    assert judge.sizes == [16, 5]


def test_another_model_is_refused_with_both_ways_out(tmp_path):
    path = tmp_path / "quiz.jsonl"
    evaluate_into(path, coins())
    with pytest.raises(ConfigError, match=r"model was tiny, now large.*another --output.*--overwrite"):
        RecordFile(path, "quiz", {"model": "large"})
    with RecordFile(path, "quiz", {"model": "large"}, overwrite=True) as records:
        assert records.get("a", 0) is None


def test_the_data_hash_names_contents_and_order():
    assert data_hash(TASKS) == data_hash(list(TASKS))
    assert data_hash(TASKS) != data_hash(TASKS[::-1])
    assert data_hash(TASKS) != data_hash([*TASKS[:2], Task("c", "three", ("4",))])


# Agents with a memory bank and other engines

ITEMS = (
    MemoryItem("m1", "Ana's town", "Ana moved to Oslo", sources=("D1:2",), created_at="May"),
    MemoryItem("m2", "", "Ben has a dog", sources=("D1:4", "D2:1")),
    MemoryItem("m3", "", "Eve sings", sources=("D3:1",)),
)
ABOUT_ANA = Task(
    "ana",
    "Where does Ana live?",
    ("Oslo",),
    conversation=(Utterance("Ana", "I moved to Oslo, and Ben has a big dog now.", "D1:2"),),
    evidence=("D1:2", "D2:1", "D9:9"),
)


def answered(**values):
    return Episode(ABOUT_ANA, answer="Oslo", bank=BankSource().open(ITEMS), retrieved=ITEMS[:2], **values)


READ_OF_BANKS = {
    "evidence_recall": {"k": 1},
    "evidence_ndcg": {},
    "evidence_kept": {},
    "m_fail": {},
    "compression": {},
    "citations": {"kind": "evidence"},
    "memory_format": {"steps": ["extract", "update", "answer"]},
}


@pytest.mark.parametrize("name", READ_OF_BANKS)
@pytest.mark.parametrize("citations", [None, (), ("m2",), ("m1", "m2")])
def test_rewards_of_banks_score_a_record_as_the_episode(tmp_path, name, citations):
    reward = REWARDS.get(name)(REWARDS.options(name).model_validate(READ_OF_BANKS[name]), {})
    episode = answered(citations=citations, checks={"extract": [1.0, 0.5], "update": [0.0]})
    with RecordFile(tmp_path / "ana.jsonl", "ana") as records:
        records.add(record("ana", episode, {}))
    (held,) = read_records(tmp_path / "ana.jsonl")
    assert held == record("ana", episode, {})
    assert reward.score([held.episode(ABOUT_ANA)]) == reward.score([episode])


def test_a_record_of_a_bank_holds_its_size_and_its_evidence(tmp_path):
    held = record("ana", answered(), {})
    # "Ana's town: Ana moved to Oslo" 6 words, "Ben has a dog" 4, "Eve sings" 2.
    assert held.bank == BankRecord(3, 12, ("D1:2", "D2:1"))
    assert [item.sources for item in held.episode(ABOUT_ANA).bank.list()] == [("D1:2", "D2:1"), (), ()]
    empty = record("ana", Episode(ABOUT_ANA, bank=BankSource().open()), {})
    assert empty.bank == BankRecord(0, 0, ()) and empty.episode(ABOUT_ANA).bank.list() == []
    assert record("ana", Episode(ABOUT_ANA), {}).episode(ABOUT_ANA).bank is None


def test_further_retrieved_items_are_recorded_by_their_sources():
    many = [
        MemoryItem(f"m{number}", "key", "a long text", sources=(f"D{number}",)) for number in range(WHOLE_ITEMS + 1)
    ]
    held = record("ana", Episode(ABOUT_ANA, retrieved=tuple(many)), {})
    assert [item.value for item in held.retrieved] == ["a long text"] * WHOLE_ITEMS + [""]
    assert held.retrieved[-1] == MemoryItem(f"m{WHOLE_ITEMS}", "", "", sources=(f"D{WHOLE_ITEMS}",))


def test_old_records_without_banks_are_still_read():
    old = {"dataset": "quiz", "task_id": "a", "sample": 0, "question": "one", "answers": ["1"], "answer": "1",
           "memory": "1", "scores": {"exact": 1.0}, "turns": []}  # fmt: skip
    held = SampleRecord.from_json(old)
    assert (held.retrieved, held.citations, held.bank, held.failure) == ((), None, None, None)
    assert held.to_json() == {**old, "answers": ("1",)}


class Frozen(Echo):
    """Asks another engine."""

    steps = ("read",)


FROZEN_AGENT = EchoAgent(None, {"echo": Frozen(ModuleOptions(interface="inference", engine="reader"), None)})


def evaluate_with_reader(path, reader, **options):
    engines = {"policy": ScriptedEngine(lambda *_: "unused"), "reader": ScriptedEngine(reader)}
    with RecordFile(path, "quiz") as records:
        return evaluate(engines, agent=FROZEN_AGENT, records=records, **options)


class Together(EchoAgent):
    """Episodes of equal index share a turn; the answer is each task's own."""

    def read(self, episode):
        yield Ask("read", (Message("user", "read"),), 5)

    def dialogue(self, episode):
        yield Shared("read", Task("the shared task", "none yet", ()), self.read)
        yield from super().dialogue(episode)


def test_a_warning_counts_cut_replies_of_shared_work(caplog):
    def cut(messages, sampling):
        return Reply("1", "length" if messages[0].content == "read" else "stop")

    agent = Together(None, dict(AGENT.modules))
    result = evaluate({"policy": ScriptedEngine(cut)}, agent=agent, samples=2)
    assert result.truncated == 0.0
    assert "2 of 2 replies in work that episodes share" in caplog.text


def test_an_episode_of_an_outage_is_counted_and_played_again(tmp_path, caplog):
    def two_is_down(messages, sampling):
        if messages[0].content == "two":
            raise EngineError("the reader is down")
        return {"one": "1", "three": "x"}[messages[0].content]

    path = tmp_path / "quiz.jsonl"
    result = evaluate_with_reader(path, two_is_down, max_unknown=0.5)
    exact = result.metrics["exact"]
    assert (exact.mean, exact.n, exact.unknown) == (0.5, 2, 1)
    assert (
        "1 of 3 episodes ended early, because an engine failed" in caplog.text and "the reader is down" in caplog.text
    )
    failures = {record.task_id: (record.failure, record.scores) for record in read_records(path)}
    assert failures["b"] == ("the reader is down", {"exact": None}) and failures["a"] == (None, {"exact": 1.0})

    caplog.clear()
    questions = []
    mended = evaluate_with_reader(path, lambda messages, sampling: questions.append(messages[0].content) or "2")
    assert questions == ["two"] and mended.metrics["exact"].mean == pytest.approx(2 / 3)
    assert caplog.text == "" and read_records(path)[1].failure is None


def test_failed_episodes_are_not_shown_to_a_judge():
    class Lengths(Judge):
        def score(self, episodes):
            self.sizes.append(len(episodes))
            return [float(len(episode.answer)) for episode in episodes]

    def two_is_down(messages, sampling):
        if messages[0].content == "two":
            raise EngineError("the reader is down")
        return messages[0].content

    judge = Lengths()
    engines = {"policy": ScriptedEngine(lambda *_: "unused"), "reader": ScriptedEngine(two_is_down)}
    result = evaluate(engines, agent=FROZEN_AGENT, env=quiz(judge), metrics=("verdict",), max_unknown=0.5)
    assert judge.sizes == [2] and result.by_question == {"verdict": {"a": 3.0, "c": 5.0}}


def test_too_many_failed_episodes_fail_the_dataset(tmp_path):
    def down(messages, sampling):
        raise EngineError("the reader is down")

    with pytest.raises(UnknownScores, match="3 of 3 scores of 'exact' are unknown: a judge or another engine failed"):
        evaluate_with_reader(tmp_path / "quiz.jsonl", down)


def test_an_outage_of_the_policy_keeps_the_finished_samples(tmp_path):
    def reply(messages, sampling):
        if messages[0].content == "three":
            raise EngineError("the policy is down")
        return "1"

    path = tmp_path / "quiz.jsonl"
    with pytest.raises(EngineError, match="the policy is down"):
        evaluate_into(path, {"policy": ScriptedEngine(reply)}, samples=1)
    assert [held.task_id for held in read_records(path)] == ["a", "b"]


BASE = Task("a", "one", ("1",), memory=ITEMS, conversation=ABOUT_ANA.conversation)


@pytest.mark.parametrize(
    "other",
    [
        {"memory": ITEMS[:2]},
        {"memory": ()},
        {"related": ("m1",)},
        {"related": ()},
        {"conversation": (Utterance("Ana", "I moved to Rome.", "D1:2"),)},
        {"evidence": ("D1:2",)},
    ],
)
def test_the_data_hash_covers_memory_and_conversations(other):
    assert data_hash([BASE]) == data_hash([Task("a", "one", ("1",), memory=(*ITEMS,), conversation=BASE.conversation)])
    assert data_hash([SimpleNamespace(**{**vars(BASE), **other})]) != data_hash([BASE])


def test_the_hash_of_a_task_without_a_bank_does_not_change():
    # python -c 'import hashlib, json; print(hashlib.sha256(json.dumps({"id": "a", "question": "one", "answers": ["1"],
    # "context": "", "memory": [], "messages": []}, sort_keys=True).encode()).hexdigest()[:16])'
    assert data_hash(TASKS[:1]) == "3d611ed9a05cb943"


def test_a_conversation_that_many_tasks_share_is_hashed_once():
    class Counted(Utterance):
        """Counts the reads of all its fields."""

        reads = 0

        def __getattribute__(self, name):
            if name == "__dict__":
                Counted.reads += 1
            return super().__getattribute__(name)

    shared = tuple(Counted("Ana", f"word {number}") for number in range(5))
    Counted.reads = 0
    data_hash([Task(str(number), "one", ("1",), conversation=shared) for number in range(100)])
    assert Counted.reads == 5


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from memfactory.engines.scripted import ScriptedEngine
import test_evaluate_episodes as here

def slow(messages, sampling):
    time.sleep(0.03)
    return here.coin(messages, sampling)

here.evaluate_into(Path(sys.argv[1]), {"policy": ScriptedEngine(slow)}, samples=40, window=4)
"""


def test_a_killed_and_resumed_evaluation_ends_as_an_uninterrupted_one(tmp_path):
    path = tmp_path / "killed.jsonl"
    folder = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(path), folder])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") > 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(path, "ab") as file:  # The kill came in the middle of a line.
        file.write(b'{"dataset": "quiz", "task_id": "a", "samp')
    finished = path.read_bytes().count(b"\n") - 1
    assert 5 <= finished < 120

    engines = coins()
    resumed = evaluate_into(path, engines, samples=40)
    assert len(engines["policy"].requests) == 120 - finished
    whole = evaluate_into(tmp_path / "whole.jsonl", coins(), samples=40)
    assert resumed == whole
    by_sample = lambda record: (record.task_id, record.sample)  # noqa: E731
    assert sorted(read_records(path), key=by_sample) == sorted(read_records(tmp_path / "whole.jsonl"), key=by_sample)
