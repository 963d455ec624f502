"""The engine over a vLLM server, against a scripted one: replies, retries, outages, weights that are confirmed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memfactory.build import build_runtime
from memfactory.config import load_config
from memfactory.engines.base import WeightHolder, sample, sample_or_errors
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.vllm.server import VllmServerEngine
from memfactory.errors import ConfigError, EngineError, PromptTooLong
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.types import Message, Sampling, SamplingParams
from small_policy import small_policy
from vllm_server_double import VllmServerDouble

SAID = (Message("user", "The code of Alice"),)
ASK = (SAID, Sampling(2, SamplingParams(0.7), stop=("x",), seed=2**62))
LORA = {"rank": 2, "target_modules": ["q_proj"]}


@pytest.fixture
def server():
    double = VllmServerDouble()
    yield double
    double.close()


@pytest.fixture
def connect(server, small_model_path: Path):
    """An engine over the server under these options."""

    def make(**options):
        given = {"url": server.url, "retries": 2, "backoff": 0.01, "startup_timeout": 0.0, **options}
        model = ModelConfig(path=str(small_model_path), device="cpu")
        return VllmServerEngine(model, load_chat(model), VllmServerConfig(**given))

    return make


# Starting


def test_a_server_that_is_away_is_told_of_with_what_starts_one(small_model_path: Path):
    model = ModelConfig(path=str(small_model_path))
    config = VllmServerConfig(url="http://127.0.0.1:9", startup_timeout=0.1)
    words = r"engine\.url: no vLLM server answers at http://127\.0\.0\.1:9 \(.*refused.*\)\. Start one with VLLM_SERVER"
    with pytest.raises(ConfigError, match=words):
        VllmServerEngine(model, load_chat(model), config)


def test_a_server_that_is_still_starting_is_waited_for(server, connect):
    server.faults["/version"] = [503]
    connect(startup_timeout=30.0)
    assert [path for path, _ in server.requests[:3]] == ["/version", "/version", "/v1/models"]


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/version", {"version": "0.23.0"}, "vllm 0.23.0 is too old"),
        ("/version", 404, "there is no vLLM server"),
        ("/v1/models", {"data": []}, "there is no vLLM server"),
        ("/collective_rpc", 404, "accepts no weights .*start it with VLLM_SERVER_DEV_MODE=1, --worker-extension-cls"),
        ("/collective_rpc", "a page", "accepts no weights .*does not say which weights it holds: a page"),
        ("/collective_rpc", 500, "accepts no weights .*start it with VLLM_SERVER_DEV_MODE=1, --worker-extension-cls"),
        ("/v1/completions", {"choices": []}, "gives no log-probabilities"),
    ],
)
def test_a_server_without_what_is_needed_is_refused(server, connect, path, answer, words):
    server.faults[path] = [answer]
    with pytest.raises(ConfigError, match=words):
        connect()


def test_the_weights_of_a_gguf_file_are_synced_unpacked(server, small_gguf_path: Path):
    model = ModelConfig(path=str(small_gguf_path), device="cpu")
    engine = VllmServerEngine(model, load_chat(model), VllmServerConfig(url=server.url, startup_timeout=0.0))
    sample(engine, [ASK])
    plain = load_model(ModelConfig(path=str(small_gguf_path.parent / "plain"), device="cpu"), training=False)
    assert server.loaded == sorted(name for name, _ in plain.named_parameters())
    engine.close()


def test_log_probabilities_before_temperature_are_refused(server, connect):
    server.raw_logprobs = True
    with pytest.raises(ConfigError, match=r"not those that it samples from; start it with .*processed_logprobs"):
        connect()
    # One token with so large a bias is certain.
    (asked,) = server.asked("/v1/completions")
    assert (asked["prompt"], asked["logit_bias"], asked["max_tokens"]) == ([0], {"0": 100.0}, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "localhost:8000"}, "is not an address; it begins with http:// or https://"),
        ({"api_key_env": "ABSENT_KEY"}, "needs a key in the environment variable ABSENT_KEY"),
    ],
)
def test_an_address_or_a_key_that_cannot_be_used_is_refused(connect, options, words):
    with pytest.raises(ConfigError, match=words):
        connect(**options)


# Replies


def test_ids_and_log_probabilities_come_under_explicit_parameters(server, connect):
    engine = connect()
    assert isinstance(engine, WeightHolder) and engine.gives_tokens
    engine.submit("a", *ASK)
    replies = {}
    while engine.pending():
        replies.update(engine.step())
    tokens = replies["a"].tokens
    assert (tokens.prompt_ids, tokens.reply_ids, tokens.logprobs) == (
        engine.chat.prompt_ids(SAID),
        (5, 6),
        (-1.0, -2.0),
    )
    assert replies["a"].stop == "length"
    sent = server.asked("/v1/completions")[-1]
    assert sent == {
        "model": "base",
        "prompt": list(tokens.prompt_ids),
        "return_token_ids": True,
        "max_tokens": 2,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 2**62,
        "stop": ["x"],
        "stop_token_ids": sorted(engine.chat.stop_ids),
        "logit_bias": None,
        "logprobs": 0,
    }
    with pytest.raises(EngineError, match="leaves no room for a reply: the context is 64 tokens"):
        engine.submit("b", [Message("user", "seven " * 99)], Sampling(3))
    engine.submit("c", *ASK)
    engine.cancel()
    assert engine.pending() == 0 and engine.step() == []
    engine.close()


def test_a_busy_server_is_retried_and_one_that_stays_busy_is_an_error(server, connect):
    engine = connect()
    sample(engine, [ASK])
    server.requests.clear()
    server.faults["/v1/completions"] = [503, {"choices": []}]
    assert sample(engine, [ASK])[0].tokens.reply_ids == (5, 6)
    assert len(server.asked("/v1/completions")) == 3
    server.faults["/v1/completions"] = [500, 429, 503]
    with pytest.raises(EngineError, match=r"the vLLM server at http\S+ gave no reply in 3 tries: HTTP 503: no"):
        sample(engine, [ASK])
    server.faults["/v1/completions"] = [400]
    with pytest.raises(EngineError, match="refuses the request with HTTP 400: no"):
        sample(engine, [ASK])


def test_a_long_prompt_or_a_refusal_fails_one_conversation_alone(server, connect):
    engine = connect()
    long = ([Message("user", "seven " * 99)], Sampling(3))
    with pytest.raises(PromptTooLong, match="the context is 64 tokens"):
        engine.check(long[0])
    engine.check(SAID)
    first, refused, last = sample_or_errors(engine, [ASK, long, ASK])
    assert isinstance(refused, PromptTooLong) and first.tokens.reply_ids == last.tokens.reply_ids == (5, 6)
    server.faults["/v1/completions"] = [400]
    outcomes = sample_or_errors(engine, [ASK, ASK])
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Reply", "RequestRefused"]


def test_a_server_that_goes_away_is_an_error(server, connect):
    engine = connect(retries=0)
    sample(engine, [ASK])
    server.close()
    with pytest.raises(EngineError, match="gave no reply in 1 try"):
        sample(engine, [ASK])


@pytest.mark.parametrize("field", ["token_ids", "prompt_token_ids"])
def test_an_answer_that_does_not_fit_what_was_asked_is_no_reply(server, connect, field):
    engine = connect()
    sample(engine, [ASK])
    body = server.completed(server.asked("/v1/completions")[-1])
    body["choices"][0][field] = [5]
    server.faults["/v1/completions"] = [json.loads(json.dumps(body))]
    with pytest.raises(EngineError, match=r"answered for 'base' on \d+ tokens, with 2 log-probabilities of \d tokens"):
        sample(engine, [ASK])


# Weights


def test_whole_weights_are_synced_and_clear_the_prefix_cache(server, connect, small_model_path: Path):
    engine, weights = connect(), small_policy(small_model_path).weights()
    server.requests.clear()
    engine.update_weights(weights)
    assert server.loaded == sorted(name for name, _ in weights.whole())
    first = server.held
    # Received, confirmed, forgotten; the folder that they passed through is gone.
    assert [path for path, _ in server.requests] == ["/collective_rpc", "/collective_rpc", "/reset_prefix_cache"]
    folder, _ = server.asked("/collective_rpc")[0]["args"]
    assert not Path(folder).exists()
    engine.update_weights(weights)
    assert server.held != first
    server.requests.clear()
    sample(engine, [ASK])
    # What was handed over stays: no conversation hands anything over again.
    assert [path for path, _ in server.requests] == ["/v1/completions", "/collective_rpc"]
    engine.submit("a", *ASK)
    with pytest.raises(ValueError, match="1 conversations are pending at the server that is to take weights"):
        engine.update_weights(weights)


def test_without_a_trainer_the_model_is_synced_at_first_use(server, connect):
    engine = connect()
    assert server.held is None
    sample(engine, [ASK, ASK])
    assert server.held is not None
    assert [body["method"] for body in server.asked("/collective_rpc")].count("memfactory_receive") == 1


def test_an_adapter_is_handed_over_alone_under_a_name_of_its_own(server, connect, small_model_path: Path):
    engine, weights = connect(), small_policy(small_model_path, lora=LORA).weights()
    engine.update_weights(weights)
    ((first, files),) = server.adapters.items()
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    assert server.held is None and server.loaded == []
    sample(engine, [ASK])
    assert server.asked("/v1/completions")[-1]["model"] == first
    engine.update_weights(weights)
    (second,) = server.adapters
    assert second != first
    # An adapter's files stay for as long as it is in use: the server may read it again.
    folders = [Path(body["lora_path"]).exists() for body in server.asked("/v1/load_lora_adapter")]
    assert folders == [False, True]
    sample(engine, [ASK])
    assert server.asked("/v1/completions")[-1]["model"] == second
    engine.close()
    assert server.adapters == {} and not Path(server.asked("/v1/load_lora_adapter")[-1]["lora_path"]).exists()


def test_an_adapter_left_by_another_run_is_not_taken_for_the_model(server, connect):
    server.adapters["left-behind"] = []
    sample(connect(), [ASK])
    assert server.asked("/v1/completions")[-1]["model"] == "base"


def test_a_reply_under_another_name_is_none(server, connect):
    engine = connect()
    sample(engine, [ASK])
    body = server.completed(server.asked("/v1/completions")[-1])
    server.faults["/v1/completions"] = [{**body, "model": "left-behind"}]
    with pytest.raises(EngineError, match="answered for 'left-behind' on"):
        sample(engine, [ASK])


def test_an_adapter_comes_with_its_base_to_a_server_of_other_weights(server, connect, small_model_path: Path):
    server.held = "of another run"
    engine, weights = connect(), small_policy(small_model_path, lora=LORA).weights()
    engine.update_weights(weights)
    assert server.loaded == sorted(name for name, _ in weights.base())
    server.loaded = []
    engine.update_weights(weights)
    assert server.loaded == [] and len(server.adapters) == 1


def test_under_merged_an_adapter_is_added_into_the_whole_model(server, connect, small_model_path: Path):
    engine, weights = connect(adapter="merged"), small_policy(small_model_path, lora=LORA).weights()
    engine.update_weights(weights)
    assert server.adapters == {} and server.loaded == sorted(name for name, _ in weights.whole())


def test_a_server_that_takes_no_adapters_is_told_of_with_the_way_out(server, connect, small_model_path: Path):
    engine = connect()
    server.faults["/v1/load_lora_adapter"] = [404]
    with pytest.raises(EngineError, match=r"--enable-lora .* or write engine\.adapter: merged"):
        engine.update_weights(small_policy(small_model_path, lora=LORA).weights())


@pytest.mark.parametrize("found", [None, "another-7"])
def test_replies_of_a_server_with_other_weights_never_pass(server, connect, found):
    engine = connect()
    sample(engine, [ASK])
    engine.submit("a", *ASK)
    # Started anew, or updated by another run, before or after it answered.
    server.held = found
    with pytest.raises(EngineError, match=f"but {found or 'the weights of its start'}: it was restarted"):
        while engine.pending():
            assert engine.step() == []
    (outcome,) = engine.try_sample([ASK])
    assert isinstance(outcome, EngineError)


def test_an_update_that_is_not_confirmed_is_an_error(server, connect, small_model_path: Path):
    engine, weights = connect(), small_policy(small_model_path).weights()
    engine.update_weights(weights)
    server.faults["/collective_rpc"] = [{"results": [{"version": "old"}]}] * 2
    with pytest.raises(EngineError, match="does not hold the weights of the last sync"):
        engine.update_weights(weights)
    server.faults["/collective_rpc"] = [{"results": [{"version": "a"}, {"version": "b"}]}] * 2
    with pytest.raises(EngineError, match=r"the workers of .* hold different weights"):
        engine.update_weights(weights)
    server.faults = {"/reset_prefix_cache": [{"success": False}]}
    with pytest.raises(EngineError, match="did not clear the prefix cache"):
        engine.update_weights(weights)
    server.faults = {"/collective_rpc": [500]}
    with pytest.raises(EngineError, match="failed at /collective_rpc: HTTP 500: no"):
        engine.update_weights(weights)


def test_engines_that_differ_in_sampling_alone_share_a_server(server, small_model_path: Path, tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text(
        f"model: {small_model_path}\nagent: memory_agent\nenv: longcontext\n"
        f"engine: {{kind: vllm_server, url: '{server.url}', startup_timeout: 0}}\n"
        f"engines: {{judge: {{kind: vllm_server, url: '{server.url}', startup_timeout: 0, temperature: 0.3}}}}\n"
    )
    stack = build_runtime(load_config(file), training=False)
    assert isinstance(stack.engines["policy"], VllmServerEngine) and stack.engines["judge"] is stack.engines["policy"]
    assert stack.sampling_params == {"judge": SamplingParams(0.3)}
