"""Prompts beyond the context: the attempt ends with its reason, is named once, and nothing else is lost."""

import json
from types import SimpleNamespace

import pytest
from test_grpo import SilentRun, weights_of

from chat_server import ChatServer, config_text, reading, rows, write_tokenizer
from memfactory.components import RewardOptions
from memfactory.config import load_config
from memfactory.config.schema import EvalConfig
from memfactory.dialogue import Agent, Ask, Shared
from memfactory.engines.base import sample_or_errors
from memfactory.engines.cached import CachedEngine
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.engines.scripted import ScriptedEngine
from memfactory.envs.base import Environment, EnvironmentOptions
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.errors import DataError, EngineError, MemFactoryError, PromptTooLong, RequestRefused
from memfactory.evaluation.collector import UnknownScores
from memfactory.evaluation.episodes import evaluate_tasks
from memfactory.evaluation.records import RecordFile, read_records
from memfactory.evaluation.settings import EvaluationSettings
from memfactory.inference import InferOptions, InferRequest, run_inference
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.play import Sampler, play
from memfactory.registry import REWARDS
from memfactory.run_folder import RunFolder
from memfactory.training import LiveRun
from memfactory.transcripts import read_transcripts
from memfactory.types import Message, Sampling, SamplingParams, Task
from scripted_stack import scripted_stack
from small_trainer import grpo_trainer

# The small model's context is 2048 tokens, and "seven " is more than one of them.
LONG = "seven " * 2100
SHORT = "The code of Alice is seven."
CONFIG = """
model: {{path: {model}}}
agent: {{name: full_context, max_tokens: 6}}
env: {{name: longcontext, rewards: {{test_parity: 1.0}}}}
data: {{train: rows.jsonl, eval: {{held: rows.jsonl}}}}
train:
  name: grpo
  steps: 3
  prompts_per_step: 1
  group_size: 4
  eval_at_start: false
  optimizer: {{learning_rate: 1.0e-2}}
trackers: []
"""


@REWARDS.register("test_parity")
class Parity(RewardFunction):
    """1 for every second attempt at a task."""

    def score(self, episodes):
        return [float(episode.index % 2) for episode in episodes]


class Chained(Agent):
    """Asks for as many replies as the question says, each prompt twice as long as the one before."""

    def dialogue(self, episode):
        text = "ab"
        for _ in range(int(episode.task.question)):
            reply = yield Ask("answer", (Message("user", text),), 8)
            text += text
            episode.answer = reply.text


class Quiz(Environment):
    """Has nothing but the reward."""

    def task(self, row):
        raise NotImplementedError


QUIZ = Quiz(EnvironmentOptions(), [Parity(RewardOptions(), {})])


class Narrow(ScriptedEngine):
    """A policy whose context is eight characters."""

    def submit(self, key, messages, sampling):
        if len(messages[-1].content) >= 8:
            raise PromptTooLong.of(len(messages[-1].content), 8, "Shorten the chunks or the memory")
        super().submit(key, messages, sampling)


def questions(*counts):
    return [Episode(Task(f"q{count}", str(count), ("x",))) for count in counts]


def test_a_prompt_that_grew_too_long_ends_its_attempt_and_no_other():
    done = list(play(Sampler(Chained(None, {}), {"policy": Narrow(lambda *_: "fine")}), questions(1, 2, 3, 2)))
    (failed,) = [e for e in done if e.failure is not None]
    # Two characters, then four, then eight.
    assert (failed.task.id, failed.overlong, len(failed.turns)) == ("q3", True, 2)
    assert "a prompt of 8 tokens leaves no room for a reply: the context is 8 tokens" in failed.failure
    assert [e.answer for e in done if e.failure is None] == ["fine"] * 3


def test_shared_work_that_does_not_fit_ends_all_who_wait_for_it():
    class Reading(Chained):
        def dialogue(self, episode):
            yield Shared("read", Task("long", "5", ("x",)), super().dialogue)

    done = list(play(Sampler(Reading(None, {}), {"policy": Narrow(lambda *_: "fine")}), questions(1, 2)))
    assert [e.overlong for e in done] == [True, True]


def refuses(text):
    def reply(messages, sampling):
        if text in messages[-1].content:
            raise RequestRefused("the content filter")
        return "fine"

    return reply


def test_a_request_that_the_policy_refuses_ends_its_attempt_alone():
    # The second prompt is the first that has four characters.
    done = list(play(Sampler(Chained(None, {}), {"policy": ScriptedEngine(refuses("abab"))}), questions(1, 2, 1)))
    (failed,) = [e for e in done if e.failure is not None]
    assert (failed.task.id, failed.failure, failed.overlong) == ("q2", "the content filter", False)


def test_a_policy_that_refuses_everything_is_an_error():
    with pytest.raises(EngineError, match="the content filter"):
        list(play(Sampler(Chained(None, {}), {"policy": ScriptedEngine(refuses("ab"))}), questions(*[1] * 20)))


@pytest.mark.parametrize("wrap", [lambda engine: engine, CachedEngine])
def test_of_many_prompts_only_the_long_one_has_an_error(small_model_path, wrap):
    config = ModelConfig(path=str(small_model_path))
    engine = HfEngine(load_model(config, training=False), load_chat(config), HfEngineConfig())
    prompts = [([Message("user", text)], Sampling(2, SamplingParams(0.0))) for text in (SHORT, LONG, SHORT)]
    first, long, last = sample_or_errors(wrap(engine), prompts)
    assert first.text == last.text and isinstance(long, PromptTooLong)


@pytest.fixture
def make(tmp_path, small_model_path):
    texts = [SHORT, LONG, SHORT]
    rows = [{"context": text, "input": "What is it?", "answers": ["x"], "index": n} for n, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=small_model_path))

    def trainer(*overrides):
        resolved = load_config(tmp_path / "run.yaml", overrides, command="train")
        return grpo_trainer(resolved, SilentRun(tmp_path / "run"))

    return trainer


def test_one_task_that_does_not_fit_trains_nothing_and_ends_no_run(make, caplog):
    trainer = make("train.steps=6")
    before = weights_of(trainer)
    trainer.train()
    # Every epoch meets the long row once: of three steps one trains nothing.
    assert [row["groups/unknown"] for row in trainer.run.logged].count(1.0) == 2
    assert any(not old.equal(new) for old, new in zip(before, trainer.trained.trained, strict=True))
    told = [record.getMessage() for record in caplog.records if "do not fit the context" in record.getMessage()]
    long = next(task.id for task in trainer.tasks if task.context == LONG)
    assert len(told) == 1 and f"{long!r} (a prompt of " in told[0] and "the context is 2048 tokens" in told[0]
    kept = [row for path in (trainer.run.folder / "transcripts").iterdir() for row in read_transcripts(path)]
    assert {row.task_id for row in kept if row.failure is not None} == {long}
    assert all("the context is 2048 tokens" in row.failure for row in kept if row.task_id == long)


def test_tasks_that_do_not_fit_are_dropped_or_refused_when_asked_for(make, caplog):
    trainer = make("train.overlong=drop")
    assert [task.context for task in trainer.tasks] == [SHORT, SHORT]
    assert "1 of 3 tasks left out" in caplog.text
    with pytest.raises(DataError, match=r"1 of 3 tasks do not fit the context: .*the context is 2048 tokens"):
        make("train.overlong=error")


def test_an_evaluation_goes_on_past_an_attempt_that_does_not_fit(tmp_path, caplog):
    tasks = [Task(f"q{count}", str(count), ("x",)) for count in (3, 1, 2)]

    def evaluate(share):
        stack = scripted_stack(Chained(None, {}), QUIZ, {"policy": Narrow(lambda *_: "fine")})
        settings = EvaluationSettings(metrics=("test_parity",), max_unknown=share)
        with RecordFile(tmp_path / "held.jsonl", "held") as records:
            return evaluate_tasks(stack, tasks, settings, records=records)

    metric = evaluate(0.5).metrics["test_parity"]
    assert (metric.n, metric.unknown) == (2, 1)
    assert "1 of 3 episodes ended early" in caplog.text and "the context is 8 tokens" in caplog.text
    failures = {held.task_id: held.failure for held in read_records(tmp_path / "held.jsonl")}
    assert failures["q1"] is failures["q2"] is None and "a prompt of 8 tokens" in failures["q3"]
    with pytest.raises(UnknownScores, match="1 of 3 scores of 'test_parity' are unknown"):
        evaluate(0.1)


def test_inference_answers_the_rows_that_an_endpoint_takes(tmp_path):
    server = ChatServer(lambda request: 400 if "Carol?" in request["messages"][-1]["content"] else reading(request))
    (tmp_path / "reader.yaml").write_text(config_text(server.url, write_tokenizer(tmp_path / "words.json")))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    request, options = InferRequest(rows=tmp_path / "rows.jsonl"), InferOptions(tmp_path / "answers.jsonl")
    result = run_inference(load_config(tmp_path / "reader.yaml"), request, options)
    server.close()
    (reason,) = result.failures.values()
    assert "refuses the request with HTTP 400" in reason
    assert len(result.answers) == 3 and not result.complete


def test_a_held_out_set_that_outgrew_the_context_ends_no_training(tmp_path, caplog):
    stack = scripted_stack(Chained(None, {}), QUIZ, {"policy": Narrow(lambda *_: "fine")})
    settings = EvalConfig(metrics=("test_parity",))
    identity = (tmp_path.stat().st_dev, tmp_path.stat().st_ino)
    resolved = SimpleNamespace(config=SimpleNamespace(eval=settings))
    held_out = {"long": (Task("q3", "3", ("x",)),), "short": (Task("q1", "1", ("x",)),)}
    run = LiveRun(resolved, RunFolder(tmp_path, None, identity), stack, held_out)
    run.evaluate(7)
    assert "step 7: long is left out of the evaluation" in caplog.text
    assert set(run.history.means(7)) and "long" not in str(run.history.means(7))
    with pytest.raises(MemFactoryError, match="4 of 4 scores"):
        run.evaluate(0)
