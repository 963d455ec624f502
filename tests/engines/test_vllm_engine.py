"""The vLLM engine without vLLM: what it refuses, what it asks, when it sleeps and wakes, what it is handed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from memfactory.engines.base import WeightHolder
from memfactory.engines.options import VllmEngineConfig
from memfactory.engines.vllm.checks import check_one_process, check_version, lora_room, prepare_platform
from memfactory.engines.vllm.engine import VllmEngine
from memfactory.engines.vllm.replies import Conversations
from memfactory.engines.vllm.weight_transfer import passing_folder, read_weights, write_weights
from memfactory.errors import ConfigError, EngineError
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.trainers.base import Trainer
from memfactory.trainers.checkpoint import TrainState
from memfactory.types import Message, Sampling, SamplingParams
from small_policy import small_policy, some_turns
from vllm_double import engine_over_the_double

INSTALLED = importlib.util.find_spec("vllm") is not None
SAID = (Message("user", "The code of Alice"),)


# What it refuses


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_a_missing_vllm_names_the_extra_and_the_versions_that_fit(small_model_path: Path):
    config = ModelConfig(path=str(small_model_path))
    with pytest.raises(ConfigError, match=r"memfactory\[vllm\]' \(versions 0\.24 to 0\.33 fit\)"):
        VllmEngine(config, load_chat(config), VllmEngineConfig())


def test_versions_are_checked(caplog: pytest.LogCaptureFixture):
    with pytest.raises(ConfigError, match=r"vllm 0\.23\.1 is too old: versions 0\.24 to 0\.33 fit"):
        check_version("0.23.1")
    for fitting in ("0.24.0", "0.33.0rc1", "0.32.0+cpu"):
        check_version(fitting)
    assert not caplog.records
    check_version("1.0.0")
    assert "newer than the versions that the engine was written for (versions 0.24 to 0.33 fit)" in caplog.text


@pytest.mark.parametrize(
    ("kind", "sleep", "device", "words"),
    [
        ("none", True, "auto", "finds no GPU that this build"),
        ("cpu", True, "auto", "cannot sleep on the CPU"),
        ("cpu", False, "auto", None),
        ("gpu", True, "cuda:1", "takes the first GPU that it sees"),
        ("gpu", True, "cuda:0", None),
    ],
)
def test_platforms_that_cannot_run_it_are_refused(monkeypatch, kind, sleep, device, words):
    package, platforms, operations = ModuleType("vllm"), ModuleType("vllm.platforms"), ModuleType("vllm._custom_ops")
    platforms.current_platform = SimpleNamespace(is_unspecified=lambda: kind == "none", is_cpu=lambda: kind == "cpu")
    package._custom_ops = operations
    for module in (package, platforms, operations):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    model, config = ModelConfig(device=device), VllmEngineConfig(sleep=sleep)
    if words is None:
        prepare_platform(model, config)
        assert (kind != "cpu") or operations._supports_onednn is False
    else:
        with pytest.raises(ConfigError, match=words):
            prepare_platform(model, config)


def test_a_run_of_several_processes_is_refused(monkeypatch):
    check_one_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it without torchrun"):
        check_one_process()


def test_an_adapter_gets_the_smallest_room_that_holds_it():
    assert [lora_room(rank) for rank in (1, 8, 9, 16, 17, 512)] == [8, 8, 16, 16, 32, 512]
    with pytest.raises(ConfigError, match=r"up to rank 512, not 513; write engine\.adapter: merged"):
        lora_room(513)


# What it asks and what it makes of the answer


def test_every_sampling_parameter_is_said(small_model_path: Path):
    chat = load_chat(ModelConfig(path=str(small_model_path)))
    # Ten tokens of context, seven of prompt: three are left. The head has two rows more than the tokenizer.
    talk = Conversations(chat, context=10, rows=chat.vocab_size + 2)
    sampling = Sampling(20, SamplingParams(0.7, 0.9, 5), stop=("x",), seed=3)
    assert talk.parameters(range(7), sampling) == {
        "max_tokens": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 3,
        "stop": ["x"],
        "stop_token_ids": sorted(chat.stop_ids),
        "logit_bias": {chat.vocab_size: -100.0, chat.vocab_size + 1: -100.0},
        "logprobs": 0,
    }
    training = Conversations(chat, context=10, rows=chat.vocab_size).parameters(range(9), Sampling(20))
    assert (training["top_p"], training["top_k"], training["logit_bias"]) == (1.0, 0, None)
    with pytest.raises(EngineError, match="10 tokens leaves no room for a reply: the context is 10 tokens"):
        talk.parameters(range(10), sampling)


@pytest.mark.parametrize(
    ("beyond", "random", "biased"),
    [(128, False, True), (129, False, False), (267, True, True), (1024, True, True), (1025, True, False)],
)
def test_biases_are_left_out_where_they_cost_much_or_are_refused(small_model_path: Path, beyond, random, biased):
    chat = load_chat(ModelConfig(path=str(small_model_path)))
    talk = Conversations(chat, context=10, rows=chat.vocab_size + beyond, random=random)
    bias = talk.parameters(range(7), Sampling(2))["logit_bias"]
    assert bias == (dict.fromkeys(range(chat.vocab_size, chat.vocab_size + beyond), -100.0) if biased else None)


def test_a_reply_ends_before_an_id_without_a_token(small_model_path: Path, caplog: pytest.LogCaptureFixture):
    chat = load_chat(ModelConfig(path=str(small_model_path)))
    talk = Conversations(chat, context=99, rows=chat.vocab_size + 200)
    for _ in range(2):
        reply = talk.reply((1,), Sampling(9, SamplingParams(1.0)), (5, chat.vocab_size, 6), [-1.0, -9.0, -2.0], "stop")
        assert (reply.tokens.reply_ids, reply.tokens.logprobs, reply.stop) == ((5,), (-1.0,), "length")
    (record,) = caplog.records
    assert "sampled an id without a token" in record.getMessage()


def test_a_reply_ends_before_its_stop_string_and_greedy_is_certain(small_model_path: Path):
    chat = load_chat(ModelConfig(path=str(small_model_path)))
    talk = Conversations(chat, context=99, rows=chat.vocab_size)
    ids = tuple(chat.tokenizer("nine. seven", add_special_tokens=False)["input_ids"])
    logprobs = [-0.5] * len(ids)
    cut = talk.reply((1,), Sampling(9, SamplingParams(0.7), stop=(". ",)), ids, logprobs, "stop")
    assert (cut.text, cut.stop, cut.tokens.reply_ids, cut.tokens.logprobs) == ("nine", "stop", ids, tuple(logprobs))
    greedy = talk.reply((1,), Sampling(9, SamplingParams(0.0)), ids, logprobs, "length")
    assert (greedy.text, greedy.stop, set(greedy.tokens.logprobs)) == ("nine. seven", "length", {0.0})


# What it is handed


def test_weights_pass_through_files_unchanged(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("memfactory.engines.vllm.weight_transfer.FILE_BYTES", 40)
    # Ten float32 fill a file; the transposed one is not contiguous.
    given = {"a": torch.arange(10.0), "b": torch.arange(6.0).view(2, 3).T, "c": torch.ones(2, dtype=torch.bfloat16)}
    write_weights(tmp_path, given.items())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000.safetensors", "00001.safetensors"]
    found = dict(read_weights(tmp_path))
    assert list(found) == ["a", "b", "c"] and all(torch.equal(found[name], given[name]) for name in given)
    with pytest.raises(EngineError, match=r"name a folder with room .* engine\.weights_folder"):
        write_weights(tmp_path / "absent", given.items())
    with pytest.raises(EngineError, match="no folder for the weights can be made in"), passing_folder("/proc/absent"):
        pass


def test_the_policys_weights_come_whole_as_base_and_as_adapter_alone(tmp_path: Path, small_model_path: Path):
    policy = small_policy(small_model_path, lora={"rank": 2, "target_modules": ["q_proj"]})
    stored = dict(load_model(ModelConfig(path=str(small_model_path), device="cpu"), training=False).named_parameters())
    before = policy.weights()
    assert before.has_adapter
    with torch.no_grad():
        for parameter in policy.trained:
            parameter.fill_(0.1)
    whole, base = dict(before.whole()), dict(before.base())
    assert set(whole) == set(base) == set(stored)
    assert all(torch.equal(base[name], stored[name]) for name in stored)
    name = "model.layers.0.self_attn.q_proj.weight"
    # A rank of 2 under alpha 2 * rank: every entry grows by 2 * (0.1 * 0.1 * 2).
    options = policy.options.lora
    assert torch.allclose(whole[name] - base[name], torch.tensor(options.alpha / options.rank * 0.02), atol=1e-6)
    before.write_adapter(tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert not small_policy(small_model_path).weights().has_adapter


def test_the_version_of_the_weights_changes_with_them_alone(tmp_path: Path, small_model_path: Path):
    policy = small_policy(small_model_path)
    assert policy.weights().version == 0
    policy.update(some_turns())
    assert policy.weights().version == 1
    # Without a turn no step is taken, though the schedule goes on.
    policy.update([])
    assert (policy.weights().version, policy.updates) == (1, 2)
    policy.save_masters(tmp_path)
    policy.load(tmp_path, policy.optimizer_state())
    assert policy.weights().version == 2


class Holder:
    """An engine with a copy of the weights that notes when it takes them and when it sleeps."""

    def __init__(self):
        self.events = []

    def update_weights(self, weights):
        self.events.append(weights.version)

    def sleep(self):
        self.events.append("sleep")


class Alternating(Trainer):
    """Rolls out, then trains; only every second step changes the weights."""

    version = 0

    def step(self, step):
        for engine in {id(engine): engine for engine in self.runtime.engines.values()}.values():
            engine.events.append("rollout")
        self.sleep_engines()
        self.version += step % 2
        return TrainState(step=step), {}

    def finished(self):
        return self.state.step == 3


def test_a_trainer_syncs_changed_weights_between_sleep_and_rollout(tmp_path: Path):
    one, shared = Holder(), Holder()
    assert isinstance(one, WeightHolder)
    engines = {"policy": shared, "helper": shared, "other": one}
    nothing = ("wait_for_everyone", "ready_to_sample", "help_save_masters", "help_save_pretrained")
    trained = SimpleNamespace(updates=0, process_index=0, in_any_process=bool)
    vars(trained).update(dict.fromkeys(nothing, lambda: None))
    run = SimpleNamespace(
        main=False, folder=tmp_path, check=lambda: None, log=lambda *a: None, evaluate=lambda *a: None
    )
    options = SimpleNamespace(
        plays=True, eval_at_start=False, eval_at_end=False, eval_every=0, save_every=0, save_seconds=None
    )
    trainer = Alternating(options, SimpleNamespace(engines=engines, seed=0), trained, (), run)
    trained.weights = lambda: SimpleNamespace(version=trainer.version)
    trainer.train()
    # The second step changes nothing, so the third rollout wakes the engine as it is.
    expected = [0, "rollout", "sleep", 1, "rollout", "sleep", "rollout", "sleep", 2]
    assert shared.events == one.events == expected


# In which order it is told: a stand-in notes what cannot be run without a GPU


def test_it_starts_as_it_is_configured_and_leaves_the_rest_to_vllm(monkeypatch, small_model_path: Path):
    engine, events = engine_over_the_double(
        monkeypatch, small_model_path, rank=12, max_num_seqs=7, prefix_caching=False, sleep=False
    )
    ((_, started),) = events
    assert started == {
        "model": str(small_model_path),
        "dtype": "float32",
        "trust_remote_code": False,
        "load_format": "auto",
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": 0.4,
        "max_num_seqs": 7,
        "enable_prefix_caching": False,
        "enforce_eager": False,
        "enable_sleep_mode": False,
        "seed": 0,
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": 16,
    }
    engine.close()
    assert events[-1] == "shutdown"
    _, events = engine_over_the_double(monkeypatch, small_model_path, rank=12, adapter="merged")
    assert "enable_lora" not in events[0][1]


def test_on_a_gpu_the_longest_conversation_is_what_the_cache_holds(monkeypatch, small_model_path: Path, caplog):
    monkeypatch.setattr("memfactory.engines.vllm.engine.resolve_device", lambda name: torch.device("cuda"))
    caplog.set_level("INFO")
    _, events = engine_over_the_double(monkeypatch, small_model_path)
    # The model's own length, 262,144 tokens of Qwen3-4B, would demand 36 GiB of cache at the start.
    assert events[0][1]["max_model_len"] == -1
    assert "room for conversations of up to 64 tokens" in caplog.text
    _, events = engine_over_the_double(monkeypatch, small_model_path, max_model_len=512)
    assert events[0][1]["max_model_len"] == 512


def test_it_sleeps_while_the_policy_trains_and_wakes_for_new_work(monkeypatch, small_model_path: Path):
    engine, events = engine_over_the_double(monkeypatch, small_model_path)
    weights = small_policy(small_model_path).weights()
    names = sorted(name for name, _ in weights.whole())
    events.clear()
    engine.update_weights(weights)
    engine.submit("a", SAID, Sampling(2))
    with pytest.raises(ValueError, match="1 conversations are pending at the engine that is to sleep"):
        engine.sleep()
    with pytest.raises(ValueError, match="pending at the engine that is to take new weights"):
        engine.update_weights(weights)
    ((key, reply),) = engine.step()
    assert (key, reply.stop, reply.tokens.reply_ids, reply.tokens.logprobs) == ("a", "length", (5, 6), (-1.0, -2.0))
    engine.sleep()
    engine.sleep()
    engine.update_weights(weights)
    engine.sleep()
    engine.submit("b", SAID, Sampling(2))
    loaded = [("reload_weights", names), "forget"]
    assert events == [
        *loaded,
        ("asked", None),
        ("sleep", 1),
        "wake",
        *loaded,
        ("sleep", 1),
        "wake",
        ("asked", None),
    ]
    engine.cancel()
    assert engine.pending() == 0 and engine.step() == []


def test_memory_that_torch_keeps_is_given_back_before_vllm_takes_its_own(monkeypatch, small_model_path: Path):
    events = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty"))
    engine, told = engine_over_the_double(monkeypatch, small_model_path)
    assert events == ["empty"] and told[0][0] == "start"
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append("empty"))
    told.clear()
    engine.sleep()
    engine.submit("a", SAID, Sampling(2))
    engine.submit("b", SAID, Sampling(2))
    assert told == [("sleep", 1), "empty", "wake", ("asked", None), ("asked", None)]


def test_an_engine_that_is_not_to_sleep_never_does(monkeypatch, small_model_path: Path):
    engine, events = engine_over_the_double(monkeypatch, small_model_path, sleep=False)
    engine.sleep()
    assert [event for event in events if event[0] == "sleep"] == []


def test_an_adapter_is_handed_over_alone_each_time_under_a_new_number(monkeypatch, small_model_path: Path):
    engine, events = engine_over_the_double(monkeypatch, small_model_path, rank=2)
    policy = small_policy(small_model_path, lora={"rank": 2, "target_modules": ["q_proj"]})
    names, files = sorted(dict(policy.weights().whole())), ["adapter_config.json", "adapter_model.safetensors"]
    events.clear()
    for _ in range(2):
        engine.update_weights(policy.weights())
    # An adapter's files stay for as long as it is in use.
    assert [Path(folder).exists() for folder in engine._engine.folders] == [False, True]
    engine.submit("a", SAID, Sampling(2))
    assert events == [
        ("add_lora", 1, files),
        "forget",
        ("remove_lora", 1),
        ("add_lora", 2, files),
        "forget",
        ("asked", "adapter-2"),
    ]
    engine.cancel()
    events.clear()
    # Weights without an adapter replace the base, so the next adapter comes with its own base again.
    engine.update_weights(small_policy(small_model_path).weights())
    engine.submit("b", SAID, Sampling(2))
    engine.cancel()
    engine.update_weights(policy.weights())
    whole = ("reload_weights", names)
    assert events == [
        ("remove_lora", 2),
        whole,
        "forget",
        ("asked", None),
        whole,
        ("add_lora", 3, files),
        "forget",
    ]
    engine.close()
    assert not any(Path(folder).exists() for folder in engine._engine.folders)


def test_an_adapter_under_merged_is_added_into_the_whole_model(monkeypatch, small_model_path: Path):
    engine, events = engine_over_the_double(monkeypatch, small_model_path, rank=2, adapter="merged")
    policy = small_policy(small_model_path, lora={"rank": 2, "target_modules": ["q_proj"]})
    events.clear()
    engine.update_weights(policy.weights())
    engine.submit("a", SAID, Sampling(2))
    assert [event[0] for event in events] == ["reload_weights", "f", "asked"]


def test_prefixes_that_are_not_forgotten_are_an_error(monkeypatch, small_model_path: Path):
    engine, _ = engine_over_the_double(monkeypatch, small_model_path, forgets=False)
    with pytest.raises(EngineError, match="did not clear the prefix cache"):
        engine.update_weights(small_policy(small_model_path).weights())
