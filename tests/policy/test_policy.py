"""The policy: log-probabilities, optimizer steps, the reference, memory that runs out, saving and going on."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from memfactory.config.grpo import GrpoOptions
from memfactory.config.optimizer import LoraOptions, OptimizerOptions
from memfactory.config.sft import SftOptions
from memfactory.engines.base import sample
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.forward import collate
from memfactory.policy.layout import lay_out
from memfactory.policy.measures import summarized
from memfactory.policy.optimizer import Schedule, learning_rate_fraction, make_optimizer
from memfactory.policy.policy import Policy
from memfactory.types import Message, Sampling, SamplingParams
from small_policy import gradients, largest_difference, small_policy, some_turns

LORA = LoraOptions(rank=4, alpha=8)


def steep(**options: object) -> OptimizerOptions:
    """A learning rate at which one step is plain to see."""
    return OptimizerOptions(learning_rate=1e-2, **options)


def test_logprobs_are_those_of_the_next_token_at_reply_positions_only(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, temperature=0.7, logprob_chunk_tokens=5)
    turns = some_turns()
    batch = collate(turns, [1.0] * len(turns), lay_out(turns, "shared", policy.chat.pad_id))
    with torch.no_grad():
        values, entropies = policy.forward.logprobs(policy.model, batch, policy.temperature, with_entropy=True)
        assert entropies is not None
        for row, turn in enumerate(turns):
            ids = torch.tensor([turn.prompt_ids + turn.reply_ids])
            logits = policy.model(input_ids=ids).logits[0, :, : policy.chat.vocab_size] / 0.7
            expected = logits.log_softmax(-1)[range(turn.length - 1), ids[0, 1:]]
            start, replied = len(turn.prompt_ids), len(turn.reply_ids)
            torch.testing.assert_close(values[row, :replied], expected[start - 1 :], rtol=0, atol=2e-6)
            assert not values[row, replied:].any()
            spread = torch.distributions.Categorical(logits=logits[start - 1 : -1]).entropy()
            torch.testing.assert_close(entropies[row, :replied], spread, rtol=0, atol=2e-6)


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_engines_logprobs_are_the_trainers(small_model_path: Path, lora: LoraOptions | None) -> None:
    policy = small_policy(small_model_path, lora=lora, temperature=0.7, optimizer=steep())
    policy.update(some_turns())
    engine = HfEngine(policy.model, policy.chat, HfEngineConfig())
    prompts = [(Message("user", text),) for text in ("What is the code of Alice?", "Schöne Grüße, 世界!")]
    sampling = [Sampling(20, SamplingParams(temperature=0.7), seed=seed) for seed in range(4)]
    replies = sample(engine, [(prompt, drawn) for prompt in prompts for drawn in sampling])
    turns = [TrainingTurn(reply.tokens.prompt_ids, reply.tokens.reply_ids, 1.0, 0, 0, "answer") for reply in replies]
    for turn, reply in zip(policy.score_old(turns), replies, strict=True):
        assert turn.old_logprobs == pytest.approx(reply.tokens.logprobs, abs=1e-5)


def test_supervised_training_minimizes_the_mean_nll(small_model_path: Path) -> None:
    config = ModelConfig(path=str(small_model_path), dtype="float32", device="cpu")
    policy = Policy(load_model(config, training=True), load_chat(config), config, SftOptions(steps=3))
    turns = [replace(turn, advantage=1.0) for turn in some_turns(sampled=False)]
    values = [value for turn in policy.score_old(turns) for value in turn.old_logprobs]
    assert policy.update(turns)["loss"] == pytest.approx(-sum(values) / len(values), abs=1e-5)


def test_scores_come_back_to_the_turn_they_belong_to(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, micro_batch_tokens=40)
    turns = some_turns()
    scored = policy.score_old(turns)
    for turn, given in zip(scored, turns, strict=True):
        (alone,) = policy.score_old([given])
        assert replace(turn, old_logprobs=None) == given
        assert turn.old_logprobs == pytest.approx(alone.old_logprobs, abs=2e-6)


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_update_changes_what_is_trained_and_nothing_else(small_model_path: Path, lora: LoraOptions | None) -> None:
    policy = small_policy(small_model_path, lora=lora, optimizer=steep(), steps=3)
    before = {name: p.detach().clone() for name, p in policy.network.named_parameters()}
    for _ in range(2):
        measured = policy.update(some_turns())
    for name, parameter in policy.network.named_parameters():
        assert parameter.requires_grad == (lora is None or ".lora_" in name)
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.dtype == torch.float32
    assert measured["tokens/trained"] == sum(len(turn.reply_ids) for turn in some_turns())
    assert not policy.model.training


def test_updates_make_rewarded_replies_likelier(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, optimizer=OptimizerOptions(learning_rate=1e-3))
    before = policy.score_old(some_turns())
    policy.update(some_turns())
    after = policy.score_old(some_turns())
    gains = [sum(a.old_logprobs) - sum(b.old_logprobs) for a, b in zip(after, before, strict=True)]
    assert all(gain * turn.advantage > 0 for gain, turn in zip(gains, before, strict=True))


def test_the_measures_are_means_over_tokens_and_weighted_sums(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, loss={"kl_coef": 0.1, "clip_low": 0.1, "clip_high": 0.1})
    first, second = some_turns()[:2]
    (one, two) = policy.score_reference(policy.score_old([first, second]))
    # Shifted so that every ratio of the first turn is e^.2 and every one of the second e^-.2; k3 of a reference
    # .1 above is e^.1 - 1.1.
    one = replace(one, advantage=1.0, old_logprobs=tuple(value - 0.2 for value in one.old_logprobs))
    two = replace(two, advantage=-1.0, old_logprobs=tuple(value + 0.2 for value in two.old_logprobs))
    one = replace(one, reference_logprobs=tuple(value + 0.1 for value in one.reference_logprobs))
    n, m = len(one.reply_ids), len(two.reply_ids)
    measured = policy.backward([one, two])
    policy_loss = (n * -1.1 + m * 0.9) / (n + m)
    kl = n * (math.exp(0.1) - 1.1) / (n + m)
    gaps = [abs(o - s) for t in (one, two) for o, s in zip(t.old_logprobs, t.sampler_logprobs, strict=True)]
    expected = {
        "policy_loss": policy_loss,
        "kl": kl,
        "loss": policy_loss + 0.1 * kl,
        "clip/high": n / (n + m),
        "clip/low": m / (n + m),
        "ratio/mean": (n * math.exp(0.2) + m * math.exp(-0.2)) / (n + m),
        "ratio/max": math.exp(0.2),
        "sampler_difference/mean": sum(gaps) / (n + m),
        "sampler_difference/max": max(gaps),
        "tokens/trained": n + m,
    }
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=2e-5)
    assert set(measured) == {*expected, "entropy"}


def test_what_a_run_does_not_have_is_not_measured(small_model_path: Path) -> None:
    measured = small_policy(small_model_path).update(some_turns(sampled=False))
    assert "kl" not in measured and "sampler_difference/mean" not in measured
    assert measured["ratio/max"] == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_is_the_policy_before_the_first_update(
    small_model_path: Path, dtype: str, lora: LoraOptions | None
) -> None:
    policy = small_policy(small_model_path, dtype, lora=lora, loss={"kl_coef": 0.1}, optimizer=steep())
    start = [turn.old_logprobs for turn in policy.score_old(some_turns())]
    assert [turn.reference_logprobs for turn in policy.score_reference(some_turns())] == start
    policy.update(policy.score_reference(some_turns()))
    assert [turn.old_logprobs for turn in policy.score_old(some_turns())] != start
    assert [turn.reference_logprobs for turn in policy.score_reference(some_turns())] == start


def test_an_adapter_that_goes_on_training_is_its_own_reference(small_model_path: Path, tmp_path: Path) -> None:
    first = small_policy(small_model_path, lora=LORA, optimizer=steep())
    first.update(some_turns())
    first.save_pretrained(tmp_path / "adapter")
    start = [turn.old_logprobs for turn in first.score_old(some_turns())]

    policy = small_policy(tmp_path / "adapter", lora=LORA, loss={"kl_coef": 0.1}, optimizer=steep())
    policy.update(policy.score_reference(some_turns()))
    assert [turn.old_logprobs for turn in policy.score_old(some_turns())] != start
    assert [turn.reference_logprobs for turn in policy.score_reference(some_turns())] == start


def test_no_reference_is_kept_without_a_kl_term(small_model_path: Path) -> None:
    policy = small_policy(small_model_path)
    assert policy.reference is None
    with pytest.raises(ValueError, match="kl_coef is 0"):
        policy.score_reference(some_turns())


def test_bfloat16_compute_trains_float32_weights(small_model_path: Path) -> None:
    exact, rounded = small_policy(small_model_path), small_policy(small_model_path, "bfloat16")
    for policy in (exact, rounded):
        policy.backward(some_turns())
        assert {parameter.dtype for parameter in policy.trained} == {torch.float32}
        assert {gradient.dtype for gradient in gradients(policy)} == {torch.float32}
    # bfloat16 has 8 bits: about half a percent for each product.
    assert 1e-4 < largest_difference(gradients(exact), gradients(rounded)) < 0.1


def test_gradient_checkpointing_leaves_the_gradient_as_it_is(small_model_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        for lora in (None, LORA):
            policy = small_policy(small_model_path, gradient_checkpointing=checkpointing, lora=lora)
            policy.backward(some_turns())
            results.append(gradients(policy))
    assert largest_difference(results[0], results[2]) < 1e-6
    assert largest_difference(results[1], results[3]) < 1e-6


def test_running_out_of_memory_halves_the_micro_batch(small_model_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    free, tight = small_policy(small_model_path), small_policy(small_model_path, micro_batch_tokens=80)
    expected = free.backward(some_turns())

    calls = 0

    def overflow(module: nn.Module, given: object) -> None:
        nonlocal calls
        calls += 1
        # The first micro-batch has already left a gradient behind when the second one fails.
        if calls == 2:
            raise torch.OutOfMemoryError("out of memory")

    tight.model.get_decoder().register_forward_pre_hook(overflow)
    with caplog.at_level(logging.WARNING, "memfactory"):
        measured = tight.backward(some_turns())
    assert tight.forward.micro_batch_tokens == 40
    assert "micro_batch_tokens is 40" in caplog.text
    assert measured == pytest.approx(expected, abs=1e-5)
    assert largest_difference(gradients(free), gradients(tight)) < 1e-6


def test_a_conversation_that_does_not_fit_alone_ends_with_advice(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, micro_batch_tokens=160)

    def overflow(module: nn.Module, given: object) -> None:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB\nmore")

    policy.model.get_decoder().register_forward_pre_hook(overflow)
    with pytest.raises(MemFactoryError, match=r"one conversation of \d+ tokens alone does not fit.*gradient_checkp"):
        policy.update(some_turns())


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, optimizer=steep(), steps=5)
    before = [parameter.detach().clone() for parameter in policy.trained]
    broken = [replace(turn, advantage=math.inf) for turn in some_turns()]
    measured = policy.update(broken)
    assert measured["skipped_steps"] == 1
    assert all(torch.equal(a, b) for a, b in zip(policy.trained, before, strict=True))
    assert not policy.optimizer.state_dict()["state"]
    assert policy.schedule.steps == 1
    # The next step is clean.
    assert math.isfinite(policy.update(some_turns())["grad_norm"])
    assert not any(torch.equal(a, b) for a, b in zip(policy.trained, before, strict=True))


def test_nothing_to_train_on_takes_no_step_but_moves_the_schedule(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, optimizer=steep(), steps=5)
    before = [parameter.detach().clone() for parameter in policy.trained]
    assert policy.update([]) == {}
    assert all(torch.equal(a, b) for a, b in zip(policy.trained, before, strict=True))
    assert policy.schedule.steps == 1


def test_the_gradient_is_clipped_to_the_norm_that_is_asked_for(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, optimizer=OptimizerOptions(max_grad_norm=1e-3))
    seen: list[float] = []
    policy.optimizer.optimizer.register_step_pre_hook(
        lambda *given: seen.append(math.sqrt(sum(float(p.grad.square().sum()) for p in policy.trained)))
    )
    measured = policy.update(some_turns())
    assert measured["grad_norm"] > 0.1
    assert seen == [pytest.approx(1e-3, rel=1e-4)]


@pytest.mark.parametrize("lora", [None, LORA])
def test_going_on_from_saved_masters_is_bit_identical(
    small_model_path: Path, tmp_path: Path, lora: LoraOptions | None
) -> None:
    settings = {"lora": lora, "optimizer": steep(schedule="cosine", warmup_steps=2), "steps": 6}
    policy = small_policy(small_model_path, **settings)
    policy.update(some_turns())
    policy.update([replace(turn, advantage=math.inf) for turn in some_turns()])
    policy.save_masters(tmp_path)
    torch.save(policy.optimizer_state(), tmp_path / "optimizer.pt")

    resumed = small_policy(small_model_path, **settings, seed=1)
    resumed.load(tmp_path, torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert policy.update(some_turns(1)) == resumed.update(some_turns(1))
    for mine, theirs in zip(policy.trained, resumed.trained, strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.skipped_steps == 1


def test_a_saved_model_has_its_compute_type_and_loads(small_model_path: Path, tmp_path: Path) -> None:
    policy = small_policy(small_model_path, "bfloat16", optimizer=steep())
    policy.update(some_turns())
    policy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
        # The head is tied to the embedding and is not written twice.
        assert "lm_head.weight" not in file.keys()
    config = ModelConfig(path=str(tmp_path), dtype="float32", device="cpu")
    loaded = load_model(config, training=False)
    for mine, theirs in zip(policy.model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine.to(torch.bfloat16).float(), theirs)
    assert load_chat(config).stop_ids == policy.chat.stop_ids


def test_a_saved_adapter_loads_through_the_model_path(small_model_path: Path, tmp_path: Path) -> None:
    policy = small_policy(small_model_path, lora=LORA, optimizer=steep())
    policy.update(some_turns())
    policy.save_pretrained(tmp_path)
    loaded = load_model(ModelConfig(path=str(tmp_path), device="cpu"), training=False)
    ids = torch.tensor([some_turns()[0].prompt_ids])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, policy.model(ids).logits, rtol=0, atol=1e-5)


def test_merging_gives_the_whole_model_and_changes_no_policy(small_model_path: Path) -> None:
    policy = small_policy(small_model_path, lora=LORA, optimizer=steep())
    policy.update(some_turns())
    before = [parameter.detach().clone() for parameter in policy.network.parameters()]
    merged = dict(policy.weights().whole())
    assert all(torch.equal(a, b) for a, b in zip(policy.network.parameters(), before, strict=True))
    plain = load_model(ModelConfig(path=str(small_model_path), device="cpu"), training=False)
    assert set(merged) == {name for name, _ in plain.named_parameters()}
    plain.load_state_dict(merged, strict=False)
    ids = torch.tensor([some_turns()[0].prompt_ids])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, policy.model(ids).logits, rtol=0, atol=1e-5)


def test_new_adapters_come_from_the_seed_alone(small_model_path: Path) -> None:
    state = torch.get_rng_state()
    first, same, other = (small_policy(small_model_path, lora=LORA, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.trained, same.trained, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.trained, other.trained, strict=True))


def test_float16_and_unknown_layers_are_refused_with_a_reason(small_model_path: Path) -> None:
    config = ModelConfig(path=str(small_model_path), device="cpu", dtype="float16")
    model = load_model(config, training=True)
    with pytest.raises(ConfigError, match="float16 is too narrow"):
        Policy(model, load_chat(config), config, GrpoOptions())
    with pytest.raises(ConfigError, match=r"train.lora.target_modules: .*no_such_layer"):
        small_policy(small_model_path, lora=LoraOptions(target_modules=("no_such_layer",)))


def test_a_model_that_caps_its_logits_is_refused(small_model_path: Path) -> None:
    architecture = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=1.0,
        initializer_range=1.0,
    )
    config = ModelConfig(path=str(small_model_path), device="cpu")
    with pytest.raises(ConfigError, match="'gemma2' scale or cap their logits"):
        Policy(Gemma2ForCausalLM(architecture), load_chat(config), config, GrpoOptions())


def test_several_updates_of_a_rollout_are_reported_as_one() -> None:
    first = {"loss": 1.0, "ratio/max": 3.0, "tokens/trained": 10.0, "learning_rate": 0.1, "skipped_steps": 0.0}
    second = {"loss": 2.0, "ratio/max": 2.0, "tokens/trained": 30.0, "learning_rate": 0.2, "skipped_steps": 1.0}
    assert summarized([first, {}, second]) == {
        "loss": 1.5,
        "ratio/max": 3.0,
        "tokens/trained": 40.0,
        "learning_rate": 0.2,
        "skipped_steps": 1.0,
    }
    assert summarized([{}]) == {}


def test_only_matrices_decay() -> None:
    layer = nn.Linear(3, 2)
    groups = make_optimizer(layer.parameters(), OptimizerOptions(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [(0.1, [2]), (0.0, [1])]


def test_eight_bit_adam_without_a_gpu_says_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="adamw_8bit needs an NVIDIA GPU"):
        make_optimizer(nn.Linear(1, 1).parameters(), OptimizerOptions(kind="adamw_8bit"))


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1]),
        # Four steps from 1 to 0.2 after the warm-up: 0.2 less each; reached after the sixth, kept from then on.
        ("linear", [0.5, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        # 0.2 + 0.8 (1 + cos(pi k / 4)) / 2
        ("cosine", [0.5, 1, 1, 0.882843, 0.6, 0.317157, 0.2]),
    ],
)
def test_schedules_warm_up_and_fall_as_worked_out_by_hand(schedule: str, shares: list[float]) -> None:
    options = OptimizerOptions(schedule=schedule, warmup_steps=2, min_lr_ratio=0.2)
    given = [learning_rate_fraction(step, options, 6) for step in range(7)]
    assert given == pytest.approx(shares, abs=1e-6)
    assert learning_rate_fraction(99, options, 6) == pytest.approx(shares[-1])


def test_a_schedule_is_spread_over_all_updates_of_a_run() -> None:
    assert GrpoOptions(steps=10, minibatches=2, epochs=3).planned_updates == 60
    # 250 groups of which 24 make a step: ten whole steps and a last one of ten groups.
    assert GrpoOptions(steps=50, valid_groups=250, prompts_per_step=24, require_variance=True).planned_updates == 11
    assert SftOptions(steps=7).planned_updates == 7


def test_a_schedule_goes_on_from_its_state() -> None:
    layer = nn.Linear(1, 1)
    options = OptimizerOptions(learning_rate=2.0, schedule="linear")
    optimizer = make_optimizer(layer.parameters(), options)
    schedule = Schedule(optimizer, options, 4)
    schedule.step()
    again = Schedule(optimizer, options, 4)
    assert optimizer.param_groups[0]["lr"] == 2.0
    again.load_state_dict(schedule.state_dict())
    assert {group["lr"] for group in optimizer.param_groups} == {1.5}
