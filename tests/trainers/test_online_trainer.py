"""Online learning end to end: a reader behind an API cites what helps, and the linear reranker learns from it.

The world: a question names a topic by another word than the memories do, so words alone cannot tell which of a
person's memories helps. Only the maps can learn which word goes with which.
"""

from __future__ import annotations

import json
import os
import re
import signal

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from chat_server import ChatServer, write_tokenizer
from memfactory.build import build_runtime, build_tasks
from memfactory.config import load_config
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.evaluation.episodes import evaluate_tasks
from memfactory.evaluation.fingerprint import sampling_fingerprint
from memfactory.evaluation.results import EvalHistory
from memfactory.evaluation.settings import EvaluationSettings
from memfactory.modules.linear_reranker import LinearReranker
from memfactory.plan.plan import make_plan
from memfactory.trainers.base import Interrupted
from memfactory.trainers.learners import Learners
from memfactory.training import run_training
from memfactory.types import SamplingParams

ASKED = ("feline", "canine", "vessel", "dwelling", "footwear", "beverage")
SAID = ("kitten", "puppy", "boat", "cottage", "sandals", "lemonade")
PEOPLE = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal")
CONFIG = """
agent:
  name: naive_rag
  modules:
    retriever: {{name: linear_reranker, candidates: 6, keep: 2, learning_rate: 0.3}}
    answerer: {{name: citing_answer}}
env: {{name: rerank, rewards: {{evidence_recall: 1.0}}}}
data: {{train: train.jsonl, eval: {{held: held.jsonl}}}}
engine: {{kind: openai, model: reader, base_url: "{url}", api_key_env: "", retries: 0, tokenizer: "{tokenizer}"}}
train: {{name: online, steps: 30, batch_size: 8, save_every: 10}}
eval: {{samples: 1, temperature: 0, metrics: [evidence_recall]}}
memory: {{embedder: {{kind: lexical, dimensions: 256}}}}
trackers: []
"""


def rows(people):
    """A question about each topic of each person, whose memories are six; one of them helps."""
    for person in people:
        memory = [
            {"id": f"m{place}", "key": "", "value": f"{person} {word}", "sources": [f"{person}:{place}"]}
            for place, word in enumerate(SAID)
        ]
        for place, topic in enumerate(ASKED):
            yield {
                "memory": memory,
                "question": f"{person} {topic}",
                "answers": [SAID[place]],
                "evidence": [f"{person}:{place}"],
            }


def reader(request):
    """Answers with the memory that is about the question's topic and cites it, if it is shown; repeats the question."""
    prompt = request["messages"][-1]["content"]
    topic = re.search(r"<question>\n\w+ (\w+)\n", prompt).group(1)
    said = SAID[ASKED.index(topic)]
    found = re.search(rf"\[(\d+)\] \w+ {said}\n", prompt)
    return f"{said} [{found.group(1)}]" if found else "I do not know. [NO_CITE]"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working directory with the data and a config; the server that reads."""
    monkeypatch.chdir(tmp_path)
    for name, people in (("train", PEOPLE[:6]), ("held", PEOPLE[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(people)))
    server = ChatServer(reader)
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "run.yaml").write_text(CONFIG.format(url=server.url, tokenizer=tokenizer))
    yield server
    server.close()


def trained(*overrides, resume=None):
    return run_training(load_config("run.yaml", ["output=run", *overrides], command="train"), resume=resume)


def metrics(folder):
    """What metrics.jsonl says of each step, but for times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


def test_recall_on_people_never_seen_rises_from_citations_alone(world, tmp_path, caplog):
    folder = trained()
    history = EvalHistory.load(folder / "eval.json")
    recall = {step: results["held"].metrics["evidence_recall"].mean for step, results in history.evaluations.items()}
    # A topic's word tells nothing at first: two of six memories are kept, so a third of the evidence is found, give
    # or take what the n-grams of the words happen to share. Twelve questions.
    assert recall[0] <= 0.5 and "learned nothing" not in caplog.text
    assert recall[30] == 1.0
    logged = [line for line in metrics(folder) if "retriever/useful" in line]
    assert [line["step"] for line in logged] == list(range(1, 31))
    # At best one of the two memories that are kept is of use.
    assert all(0 <= line["retriever/useful"] <= 0.5 for line in logged)
    assert {"reward", "reward/evidence_recall", "retriever/skipped", "retriever/update_query"} <= {*logged[0]}
    assert (folder / "figures" / "training.png").is_file() and (folder / "transcripts" / "step-000001.jsonl").is_file()


def test_a_run_whose_answers_cite_nothing_is_told_that_it_learnt_nothing(world, caplog):
    world.reply = lambda request: "I do not know."
    trained("train.steps=2", "train.eval_at_start=false", "train.eval_at_end=false")
    assert "at step 2: retriever learned nothing in this run" in caplog.text
    assert "retriever/..." in caplog.text


def test_a_run_that_was_resumed_ends_bit_identical(world, tmp_path):
    whole = trained("train.steps=6", "train.save_every=2").rename(tmp_path / "whole")
    trained("train.steps=4", "train.save_every=2")
    again = trained("train.steps=6", "train.save_every=2", resume="run")
    maps = [load_file(folder / "final" / "modules" / "retriever.safetensors") for folder in (whole, again)]
    assert {*maps[0]} == {"query.left", "memory.left"}
    assert all((maps[0][name] == maps[1][name]).all() and maps[0][name].any() for name in maps[0])
    assert metrics(whole) == metrics(again)
    assert sorted(path.name for path in (again / "checkpoints").iterdir()) == ["step-4", "step-6"]


def test_a_run_that_was_interrupted_goes_on_where_it_stopped(world, tmp_path):
    whole = trained("train.steps=5").rename(tmp_path / "whole")
    third_step, once = len(world.requests) + 12 + 8 * 2 + 3, iter([True])  # after the evaluation and two steps

    def impatient(request):
        if len(world.requests) >= third_step and next(once, False):
            os.kill(os.getpid(), signal.SIGINT)
        return reader(request)

    world.reply = impatient
    with pytest.raises(Interrupted):
        trained("train.steps=5")
    world.reply = reader
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    again = trained("train.steps=5", resume="auto")
    maps = [load_file(folder / "final" / "modules" / "retriever.safetensors") for folder in (whole, again)]
    assert all((maps[0][name] == maps[1][name]).all() for name in maps[0])


def recall_of(source):
    """evidence_recall of the held-out questions, and the agent it was measured on."""
    resolved = load_config(source, command="eval")
    stack = build_runtime(resolved, training=False)
    tasks = build_tasks(resolved.config.data.eval["held"], stack.env, resolved.base_dir).tasks
    found = evaluate_tasks(stack, tasks, EvaluationSettings(metrics=("evidence_recall",)))
    return found.metrics["evidence_recall"].mean, resolved


def test_run_folders_and_checkpoints_are_evaluated_with_what_was_learnt(world, tmp_path):
    folder = trained("train.save_every=5")
    before, config = recall_of("run.yaml")
    after, run = recall_of(folder)
    between, checkpoint = recall_of(folder / "checkpoints" / "step-25")
    assert before <= 0.5 < between <= after == 1.0
    weights = [one.config.agent.modules["retriever"].options.weights for one in (run, checkpoint)]
    assert weights == [f"run/{place}/modules/retriever.safetensors" for place in ("final", "checkpoints/step-25")]
    assert run.config.model == checkpoint.config.model == config.config.model


def test_training_starts_from_trained_maps_that_are_named(world, tmp_path):
    folder = trained("train.steps=3", "train.eval_at_start=false", "train.eval_at_end=false")
    weights = "run/final/modules/retriever.safetensors"
    further = [f"agent.modules.retriever.weights={weights}", "train.steps=1", "output=further"]
    first = load_file(folder / "final" / "modules" / "retriever.safetensors")
    second = run_training(load_config("run.yaml", further, command="train"))
    learnt = load_file(second / "final" / "modules" / "retriever.safetensors")
    moved = numpy.linalg.norm(learnt["query.left"] - first["query.left"])
    assert 0 < moved < numpy.linalg.norm(learnt["query.left"])


def test_samples_of_other_maps_or_another_embedder_are_of_another_agent(world, tmp_path):
    trained("train.steps=2", "train.eval_at_start=false", "train.eval_at_end=false")
    weights = tmp_path / "run" / "final" / "modules" / "retriever.safetensors"

    def agent(*words):
        resolved = load_config("run", words, command="eval")
        return sampling_fingerprint(resolved, SamplingParams(), 0)["agent"]

    before = agent()
    assert before == agent() != agent("memory.embedder.dimensions=128")
    save_file({name: array * 2 for name, array in load_file(weights).items()}, weights)
    assert agent() != before


def test_what_cannot_be_trained_online_is_told(world, tmp_path):
    with pytest.raises(ConfigError, match="no module learns online; write for example"):
        load_config("run.yaml", ["agent.modules.retriever=naive_retriever"], command="train")
    with pytest.raises(ConfigError, match=r"there is no file 'none\.safetensors'"):
        load_config("run.yaml", ["agent.modules.retriever.weights=none.safetensors"], command="train")
    with pytest.raises(ConfigError, match="an OpenAI-compatible endpoint cannot be trained"):
        load_config("run.yaml", ["train={name: grpo}"], command="train")
    stack = build_runtime(load_config("run.yaml", ["agent.modules.retriever=naive_retriever"]), training=False)
    with pytest.raises(ConfigError, match="none of its modules learns by itself"):
        Learners(stack.agent)


def test_several_processes_are_refused(world, monkeypatch):
    stack = build_runtime(load_config("run.yaml"), training=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="modules learn online in one process"):
        Learners(stack.agent)


def test_an_endpoint_that_is_down_stops_the_run_and_nothing_is_learnt(world, tmp_path):
    world.reply = lambda request: 500
    with pytest.raises(MemFactoryError):
        trained("train.eval_at_start=false")
    assert not (tmp_path / "run" / "final").exists()


def test_attempts_that_a_helper_failed_stop_the_run_when_they_are_many(world, tmp_path):
    down = ChatServer(lambda request: 500)
    helper = f'engines.helper={{kind: openai, model: h, base_url: "{down.url}", api_key_env: "", retries: 0}}'
    answerer = "agent.modules.answerer={name: citing_answer, interface: inference, engine: helper}"
    with pytest.raises(MemFactoryError, match=r"8 of 8 episodes failed, more than train\.max_failed_fraction = 0\.2"):
        trained(helper, answerer, "train.eval_at_start=false")
    down.close()


def test_a_module_that_fails_in_learning_leaves_a_whole_step(world, tmp_path, monkeypatch):
    whole = load_file(trained("train.steps=3") / "final/modules/retriever.safetensors")
    learn = LinearReranker.learn

    def fails_after_the_third(module, episodes):
        found = learn(module, episodes)
        if not fails_after_the_third.left:
            raise RuntimeError("broken halfway")
        fails_after_the_third.left -= 1
        return found

    fails_after_the_third.left = 2
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken halfway"):
        patch.setattr(LinearReranker, "learn", fails_after_the_third)
        trained("train.steps=3", "output=other")
    assert [path.name for path in (tmp_path / "other/checkpoints").iterdir()] == ["step-2"]
    again = load_file(trained("train.steps=3", "output=other", resume="auto") / "final/modules/retriever.safetensors")
    assert {name for name in whole if not numpy.array_equal(whole[name], again[name])} == set()


def test_the_plan_says_what_is_trained_and_how_much_is_asked(world):
    plan = dict(make_plan(load_config("run.yaml")).work)
    assert plan["trained modules"] == "retriever"
    assert plan["episodes"] == "8 a step, 240 in all"


def test_the_embedded_model_can_be_the_reader(world, tmp_path, small_model_path):
    # It cites nothing that can be read, so nothing is learnt, but every part is played.
    words = [f"model.path={small_model_path}", "engine={kind: hf}", "agent.modules.answerer.max_tokens=8"]
    folder = trained(*words, "train.steps=1", "train.batch_size=2", "train.eval_at_end=false", "eval.limit=2")
    (line,) = [line for line in metrics(folder) if "turns" in line]
    assert (line["turns"], line["reply_tokens"] <= 8) == (1.0, True)
    assert line["retriever/skipped"] == 1.0
