"""Frozen work is done once a run: nobody is asked word for word again, not even by a resumed run, within bounds."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from chat_server import ChatServer, write_tokenizer
from memfactory.build import engine_name
from memfactory.config import load_config
from memfactory.engines.cached import CachedEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.engines.replies import ReplyStore, name_of
from memfactory.engines.scripted import ScriptedEngine
from memfactory.files.assets import asset
from memfactory.model.options import ModelConfig
from memfactory.redaction import keep_secret
from memfactory.training import run_training
from memfactory.types import Message, Reply, Sampling, SamplingParams, Tokens

CONFIG = """
agent: {{name: memory_rmm, modules: {{retriever: {{name: linear_reranker, candidates: 6, keep: 2}}}}}}
env: {{name: rerank, rewards: {{evidence_recall: 1.0}}}}
data: {{train: rows.jsonl, eval: {{held: rows.jsonl}}}}
engine: {{kind: openai, model: reader, base_url: "{url}", api_key_env: "", retries: 0, tokenizer: "{tokenizer}"}}
train: {{name: online, steps: 3, batch_size: 4, save_every: 1, keep_checkpoints: 9, eval_every: 1}}
eval: {{samples: 1, temperature: 0, metrics: [evidence_recall]}}
trackers: []
"""
GREEDY = Sampling(8, SamplingParams(temperature=0))


def rows():
    told = [
        {"speaker": "Ann", "text": f"I like {thing}.", "dia_id": f"D{session}:1", "session": f"s{session}"}
        for session, thing in enumerate(("tea", "cake", "rain"), 1)
    ]
    for number in range(6):
        yield {"conversation": told, "question": f"What is {number}?", "answers": ["tea"], "evidence": ["D1:1"]}


def reader(request):
    """Sums a session up as it stands, adds every summary, and answers with the first memory."""
    prompt = request["messages"][-1]["content"]
    if "extracted_memories" in prompt:
        (said,) = re.findall(r"I like \w+\.", prompt)
        return json.dumps({"extracted_memories": [{"summary": said, "reference": [0]}]})
    return "Add()" if "Merge(index" in prompt else "tea [1]"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    server = ChatServer(reader)
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    Path("run.yaml").write_text(CONFIG.format(url=server.url, tokenizer=tokenizer))
    yield server
    server.close()


def trained(*overrides, resume=None):
    return run_training(load_config("run.yaml", overrides, command="train"), resume=resume)


def asked(server):
    return Counter(json.dumps(request["messages"]) for request in server.requests)


def test_nothing_is_asked_twice_in_a_run_and_its_evaluations(server):
    trained("output=run")
    assert len(server.requests) > 10 and set(asked(server).values()) == {1}


def test_a_resumed_run_asks_for_nothing_that_it_knows(server):
    whole = trained("output=whole")
    server.requests.clear()
    trained("output=run", "train.steps=2")
    trained("output=run", resume="run")
    assert set(asked(server).values()) == {1}
    maps = [load_file(folder / "final/modules/retriever.safetensors") for folder in (whole, Path("run"))]
    assert all((maps[0][name] == maps[1][name]).all() for name in maps[0])


def test_another_endpoint_behind_a_variable_is_asked_anew(server, monkeypatch):
    Path("run.yaml").write_text(Path("run.yaml").read_text().replace(f'base_url: "{server.url}"', "base_url: null"))
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    trained("output=run", "train.steps=2")
    other = ChatServer(reader)
    monkeypatch.setenv("OPENAI_BASE_URL", other.url)
    trained("output=run", resume="run")
    repeated = set(asked(server)) & set(asked(other))
    other.close()
    assert repeated


def test_replies_are_named_by_the_weights_that_gave_them(server, tmp_path):
    shutil.copytree(asset("tiny"), tmp_path / "helper")
    config = load_config("run.yaml", command="train").config
    settings = HfEngineConfig(model=ModelConfig(path=str(tmp_path / "helper")))
    before = engine_name(settings, config)
    assert engine_name(settings, config) == before
    (tmp_path / "helper/config.json").write_text("{}")
    assert engine_name(settings, config) != before


def test_a_damaged_line_of_the_kept_replies_is_asked_for_again(server, caplog):
    trained("output=run", "train.steps=2")
    path = Path("run/replies.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(['{"asked": "zz", "text": "x", "stop": "stop"}', "{oops", *lines[2:]]) + "\n")
    trained("output=run", resume="run")
    assert "2 cached replies cannot be read and will be requested again" in caplog.text
    assert sum(count - 1 for count in asked(server).values()) == 2


def test_replies_that_are_drawn_are_never_kept(server):
    trained("output=run", "train.temperature=0.7", "train.steps=2", "eval.temperature=0.7")
    assert max(asked(server).values()) > 1
    assert Path("run/replies.jsonl").read_text() == ""


def reply(text, tokens=0):
    ids = tuple(range(tokens))
    return Reply(text, "stop", Tokens((1, *ids), ids, tuple(-float(id) for id in ids)) if tokens else None)


def test_kept_replies_stay_within_their_bound_and_the_oldest_go():
    store = ReplyStore(limit=100_000)
    for number in range(1000):
        store.put(b"%d" % number, reply("x", tokens=200))
        assert store.get(b"0") is not None
    assert store.bytes <= 100_000 and len(store) < 40
    assert store.get(b"1") is None and store.get(b"999") == reply("x", tokens=200)


def test_a_kept_reply_takes_little_more_than_its_ids():
    store = ReplyStore()
    store.put(b"1", Reply("x" * 100, "stop", Tokens(tuple(range(2000)), (1,), (0.0,))))
    assert store.bytes < 20_000


def test_a_file_of_replies_has_a_bound_and_gives_equal_replies(tmp_path):
    store = ReplyStore(file_limit=20_000)
    store.keep_in(tmp_path / "replies.jsonl")
    for number in range(100):
        store.put(b"%d" % number, reply(f"\x1b[31m {number}", tokens=20))
    store.close()
    assert (tmp_path / "replies.jsonl").stat().st_size < 30_000
    again = ReplyStore()
    again.keep_in(tmp_path / "replies.jsonl")
    again.close()
    assert 5 < len(again) < 50 and all(again.get(b"%d" % n) == store.get(b"%d" % n) for n in range(5))


def test_a_disk_that_refuses_costs_the_file_and_not_the_run(tmp_path, caplog):
    (tmp_path / "replies.jsonl").mkdir()
    store = ReplyStore()
    store.keep_in(tmp_path / "replies.jsonl")
    store.put(b"1", reply("a"))
    assert store.get(b"1") == reply("a")
    assert "replies are not cached on disk" in caplog.text


def test_a_reply_with_a_key_in_it_is_kept_in_memory_only(tmp_path):
    keep_secret("sk-planted-0123456789")
    store = ReplyStore()
    store.keep_in(tmp_path / "replies.jsonl")
    store.put(b"1", reply("your key is sk-planted-0123456789"))
    store.put(b"2", reply("half \ud83d"))
    store.close()
    again = ReplyStore()
    again.keep_in(tmp_path / "replies.jsonl")
    again.close()
    assert (again.get(b"1"), again.get(b"2")) == (None, reply("half \ud83d"))
    assert store.get(b"1") == reply("your key is sk-planted-0123456789")


def test_replies_of_different_engines_and_lengths_are_told_apart():
    said = (Message("user", "a"),)
    names = {name_of(engine, said, Sampling(n, SamplingParams(0))) for engine in ("one", "two") for n in (5, 6)}
    assert len(names) == 4
    assert name_of("one", said, GREEDY) != name_of("one", (Message("system", "a"),), GREEDY)
    store = ReplyStore()
    engines = [CachedEngine(ScriptedEngine(lambda *asked, name=name: name), store, name) for name in ("one", "two")]
    for engine in engines:
        engine.submit(0, said, GREEDY)
    assert [dict(engine.step())[0].text for engine in engines] == ["one", "two"]
