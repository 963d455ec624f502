"""One engine over several vLLM servers: shares of requests, and servers that end or are started anew."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.engines.base import sample, sample_or_errors
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.vllm.server import VllmServerEngine
from memfactory.errors import ConfigError, EngineError
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from memfactory.types import Message, Sampling
from small_policy import small_policy
from vllm_server_double import VllmServerDouble

ASK = ((Message("user", "The code of Alice"),), Sampling(2))
LORA = {"rank": 2, "target_modules": ["q_proj"]}


@pytest.fixture
def servers():
    doubles = [VllmServerDouble(), VllmServerDouble(context=48)]
    yield doubles
    for double in doubles:
        double.close()


@pytest.fixture
def engine(servers, small_model_path: Path):
    model = ModelConfig(path=str(small_model_path), device="cpu")
    urls = tuple(double.url for double in servers)
    config = VllmServerConfig(url=urls, retries=0, startup_timeout=0.0, concurrency=4)
    connected = VllmServerEngine(model, load_chat(model), config)
    yield connected
    connected.close()


def replies(double) -> int:
    return sum("return_token_ids" in body for body in double.asked("/v1/completions"))


def test_each_request_goes_to_the_server_with_the_fewest_open_ones(servers, engine):
    first, second = servers
    sample(engine, [ASK])
    free, answer = threading.Event(), first.completed

    def slow(body):
        free.wait(20)
        return answer(body)

    # Of eight requests at one time at most four wait at the first server until the second has twelve.
    first.completed = slow

    def counted(body):
        said = VllmServerDouble.completed(second, body)
        if replies(second) >= 12:
            free.set()
        return said

    second.completed = counted
    assert len(sample(engine, [ASK] * 16)) == 16
    assert free.is_set() and replies(first) + replies(second) == 17
    # The shortest context counts.
    assert engine._conversations.context == 48


def test_all_servers_receive_the_same_weights_under_one_version(servers, engine, small_model_path):
    weights = small_policy(small_model_path).weights()
    engine.update_weights(weights)
    assert servers[0].held == servers[1].held is not None
    assert servers[0].loaded == servers[1].loaded == sorted(name for name, _ in weights.whole())


@pytest.mark.parametrize("index", [0, 1])
def test_a_server_that_ends_is_named_and_the_other_goes_on(servers, engine, small_model_path, index):
    weights = small_policy(small_model_path).weights()
    engine.update_weights(weights)
    servers[index].close()
    outcomes = sample_or_errors(engine, [ASK] * 8)
    failed = [str(outcome) for outcome in outcomes if isinstance(outcome, EngineError)]
    assert failed and all(servers[index].url in reason for reason in failed)
    with pytest.raises(EngineError, match=servers[index].url):
        engine.update_weights(weights)


@pytest.mark.parametrize("index", [0, 1])
def test_replies_of_a_server_that_was_started_anew_never_pass(servers, engine, small_model_path, index):
    weights = small_policy(small_model_path).weights()
    engine.update_weights(weights)
    servers[index].held = None
    outcomes = sample_or_errors(engine, [ASK] * 8)
    assert all(f"{servers[index].url} does not hold the weights" in str(outcome) for outcome in outcomes)
    # New weights take it back in.
    engine.update_weights(weights)
    assert len(sample(engine, [ASK] * 8)) == 8


def test_a_server_that_was_started_anew_gets_base_and_adapter(servers, engine, small_model_path, caplog):
    weights = small_policy(small_model_path, lora=LORA).weights()
    servers[1].held = "of another run"
    engine._servers.models[1].look()
    engine.update_weights(weights)
    (name,) = servers[0].adapters
    assert servers[1].adapters.keys() == {name} and servers[0].loaded == []
    assert servers[1].loaded == sorted(name for name, _ in weights.base())
    held = servers[1].held
    # It loses its adapter and holds the weights of its start, which are those below the adapter.
    servers[1].held, servers[1].adapters, servers[1].loaded = None, {}, []
    servers[1].faults["/v1/unload_lora_adapter"] = [404]
    engine.update_weights(weights)
    assert servers[0].adapters.keys() == servers[1].adapters.keys() != {name}
    assert servers[1].loaded == [] and held is not None
    assert f"{servers[1].url} was restarted; it gets the weights anew" in caplog.text
    assert len(sample(engine, [ASK] * 4)) == 4


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("[]", "no address is given; write the address of a server"),
        ("[http://a:1, http://a:1]", "http://a:1 is given twice"),
        ("[http://a:1, b]", "'b' is not an address; it begins with http"),
    ],
)
def test_a_list_of_addresses_is_checked(tmp_path, url, words):
    file = tmp_path / "x.yaml"
    file.write_text(f"model: tiny\nagent: memory_agent\nenv: longcontext\nengine: {{kind: vllm_server, url: {url}}}\n")
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(file)
    assert "x.yaml:4: engine.url" in str(caught.value)
