"""Common beginnings once and packed rows give the losses and gradients of padded rows."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
)

from memfactory.config.grpo import GrpoOptions
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.layout import MIN_SHARED, lay_out
from memfactory.policy.policy import Policy
from memfactory.policy.self_test import can_trim, usable_packing
from small_policy import gradients, largest_difference, small_policy

PACKINGS = ("padded", "packed", "shared")
LORA = {"rank": 4, "alpha": 8}
BOUND = 1e-5


@cache
def turns() -> list[TrainingTurn]:
    """Two groups of four attempts whose prompts are equal or begin alike, replies that begin alike, and equal turns."""
    draw = Random(3)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 300) for _ in range(count))

    first, second = drawn(2 * MIN_SHARED + 5), drawn(3 * MIN_SHARED)
    thought = drawn(MIN_SHARED + 3)
    made = []
    for member in range(8):
        prompt, common = member // 4, (first, second)[member // 4]
        replies = drawn(draw.randrange(1, 9)), (*thought, *drawn(draw.randrange(1, 6)))
        for step, prompt_ids, reply_ids in (
            ("extract", common, replies[0]),
            ("update", (*common, *drawn(5)), replies[1]),
            ("answer", drawn(7), replies[0]),
        ):
            logprobs = tuple(-draw.uniform(4, 7) for _ in reply_ids)
            advantage = draw.uniform(-1, 1)
            made.append(TrainingTurn(prompt_ids, reply_ids, advantage, member, prompt, step, sampler_logprobs=logprobs))
    # Another attempt that said the very same.
    return [*made, replace(made[1], trajectory=8, prompt=1, advantage=0.5)]


def policy_of(path: Path, packing: str, **options: object) -> Policy:
    policy = small_policy(path, packing=packing, **options)
    assert policy.forward.feeding.packing == packing
    if policy.options.lora is not None:
        # New adapters are the identity, and half of their gradient is 0.
        for index, parameter in enumerate(policy.trained):
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(index))
    return policy


@cache
def scored(path: Path) -> list[TrainingTurn]:
    """The turns with old and reference log-probabilities that differ from the policy's."""
    draw = Random(4)
    policy = policy_of(path, "padded", loss={"kl_coef": 0.1})
    return [
        replace(
            turn,
            old_logprobs=tuple(value + draw.uniform(-0.3, 0.3) for value in turn.old_logprobs),
            reference_logprobs=tuple(value + draw.uniform(-0.3, 0.3) for value in turn.old_logprobs),
        )
        for turn in policy.score_old(turns())
    ]


@cache
def policies(path: Path, adapters: bool) -> dict[str, Policy]:
    """For each packing the same policy; what is measured on it leaves its weights as they are."""
    return {packing: policy_of(path, packing, lora=LORA if adapters else None) for packing in PACKINGS}


def assert_all_agree(path: Path, loss: dict[str, object], *, adapters: bool = False) -> None:
    """Every packing gives the measures and the gradient of padded rows."""
    results = {}
    for packing, policy in policies(path, adapters).items():
        policy.set_loss(GrpoOptions(loss=loss).loss)
        policy.temperature = 0.8
        results[packing] = policy.backward(scored(path)), gradients(policy)
    measured, expected = results["padded"]
    for packing in ("packed", "shared"):
        assert results[packing][0] == pytest.approx(measured, rel=BOUND, abs=BOUND)
        assert largest_difference(expected, results[packing][1]) < BOUND


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("weighting", ["token", "turn", "trajectory", "prompt", "constant"])
def test_every_weighting_has_one_gradient(small_model_path: Path, weighting: str, adapters: bool) -> None:
    loss = {"weighting": weighting, "constant_length": 12, "kl_coef": 0.1, "sampler_correction": "token_truncate"}
    assert_all_agree(small_model_path, loss, adapters=adapters)


@pytest.mark.parametrize("objective", ["gspo", "cispo", "sapo", "vespo", "reinforce"])
def test_every_objective_has_one_gradient(small_model_path: Path, objective: str) -> None:
    assert_all_agree(
        small_model_path, {"objective": objective, "clip_high": 1.2, "sampler_correction": "sequence_truncate"}
    )


def test_the_scores_of_a_turn_are_its_own(small_model_path: Path) -> None:
    rows = [[turn.old_logprobs for turn in p.score_old(turns())] for p in policies(small_model_path, True).values()]
    for padded, packed, shared in zip(*rows, strict=True):
        assert packed == pytest.approx(padded, abs=1e-5)
        assert shared == pytest.approx(padded, abs=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapters"])
@pytest.mark.parametrize("budget", [1, 60, 150])
def test_a_tree_that_is_cut_by_the_budget_has_the_same_gradient(
    small_model_path: Path, budget: int, lora: dict | None
) -> None:
    whole, cut = (
        policy_of(small_model_path, "shared", micro_batch_tokens=tokens, lora=lora) for tokens in (16384, budget)
    )
    measured = whole.backward(scored(small_model_path))
    assert cut.backward(scored(small_model_path)) == pytest.approx(measured, rel=BOUND, abs=BOUND)
    assert largest_difference(gradients(whole), gradients(cut)) < BOUND


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapters"])
def test_gradient_checkpointing_goes_through_the_same_parts(small_model_path: Path, lora: dict | None) -> None:
    plain, again = (policy_of(small_model_path, "shared", gradient_checkpointing=on, lora=lora) for on in (False, True))
    plain.backward(turns())
    again.backward(turns())
    assert largest_difference(gradients(plain), gradients(again)) < 1e-6


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapters"])
def test_leaving_out_what_is_not_read_changes_no_gradient(
    small_model_path: Path, lora: dict | None, packing: str
) -> None:
    whole = policy_of(small_model_path, packing, trim_last_layer=False, lora=lora)
    trimmed = policy_of(small_model_path, packing, gradient_checkpointing=True, lora=lora)
    rows: list[int] = []
    trimmed.model.get_decoder().layers[-1].mlp.up_proj.register_forward_hook(
        lambda module, given, result: rows.append(result.shape[-2])
    )
    assert trimmed.backward(turns()) == pytest.approx(whole.backward(turns()), abs=1e-6)
    assert largest_difference(gradients(whole), gradients(trimmed)) < 1e-6
    read = sum(len(turn.reply_ids) for turn in turns())
    # Computed once more in the backward pass. Where replies begin alike, a state is read for several tokens.
    assert rows == [read, read] if packing != "shared" else rows[0] == rows[1] < read
    assert not trimmed.model.get_decoder().layers[-1].mlp._forward_pre_hooks


def test_several_steps_on_one_rollout_end_at_the_same_weights(small_model_path: Path) -> None:
    # Epsilon keeps Adam from dividing small gradients by themselves, which would blow their rounding up.
    options = {"optimizer": {"learning_rate": 1e-2, "epsilon": 1e-2}, "minibatches": 2, "epochs": 2}
    ends = []
    for packing in ("padded", "shared"):
        policy = policy_of(small_model_path, packing, loss={"kl_coef": 0.1}, **options)
        given = policy.score_old(policy.score_reference(turns()))
        for _ in range(2):
            for prompt in (0, 1):
                policy.update([turn for turn in given if turn.prompt == prompt])
        ends.append([parameter.detach().clone() for parameter in policy.trained])
    assert largest_difference(*ends) < BOUND


def test_bfloat16_is_as_far_from_float32_as_it_is_in_padded_rows(small_model_path: Path) -> None:
    exact = policy_of(small_model_path, "padded")
    exact.backward(turns())
    expected = torch.cat([gradient.flatten() for gradient in gradients(exact)])
    errors = {}
    for packing in PACKINGS:
        policy = small_policy(small_model_path, "bfloat16", packing=packing)
        assert policy.forward.feeding.packing == packing
        policy.backward(turns())
        found = torch.cat([gradient.flatten() for gradient in gradients(policy)])
        errors[packing] = float((found - expected).norm() / expected.norm())
    # bfloat16 has 8 bits: half a percent for each product.
    assert 1e-3 < errors["padded"] < 0.05
    assert errors["packed"] < 1.2 * errors["padded"]
    assert errors["shared"] < 1.2 * errors["padded"]


def test_the_model_attends_as_before_once_a_pass_is_over(small_model_path: Path) -> None:
    policy = policy_of(small_model_path, "shared", loss={"kl_coef": 0.1})
    before = policy.model.config._attn_implementation
    policy.update(policy.score_reference(turns()))
    assert policy.model.config._attn_implementation == before

    def broken(module: object, given: object) -> None:
        raise KeyError("broken")

    policy.model.get_decoder().register_forward_pre_hook(broken)
    with pytest.raises(KeyError, match="broken"):
        policy.update(turns())
    assert policy.model.config._attn_implementation == before


def test_sharing_feeds_far_fewer_tokens(small_model_path: Path) -> None:
    fed = {packing: lay_out(turns(), packing, 0).input_ids.numel() for packing in PACKINGS}
    assert fed["shared"] < 0.5 * fed["packed"] < 0.5 * fed["padded"]


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 400}
ABLE = {
    "llama": LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2, whose projections have a bias": Qwen2ForCausalLM(Qwen2Config(**SIZES)),
}
UNABLE = {
    "do not attend to all earlier tokens": MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4096)),
    "drops attention weights at random": LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.1)),
}


@pytest.mark.parametrize("kind", ABLE)
def test_other_architectures_share_too(small_model_path: Path, kind: str) -> None:
    config = ModelConfig(path=str(small_model_path), dtype="float32", device="cpu")
    results = []
    for packing in ("padded", "shared"):
        model = ABLE[kind]
        policy = Policy(model.eval(), load_chat(config), config, GrpoOptions(packing=packing))
        assert policy.forward.feeding.packing == packing
        policy.backward(turns())
        results.append(gradients(policy))
        policy.optimizer.zero_grad()
    assert largest_difference(*results) < BOUND


@pytest.mark.parametrize("reason", UNABLE)
def test_a_model_that_cannot_is_padded_with_one_warning(
    small_model_path: Path, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = ModelConfig(path=str(small_model_path), dtype="float32", device="cpu")
    with caplog.at_level(logging.WARNING, "memfactory"):
        policy = Policy(UNABLE[reason].eval(), load_chat(config), config, GrpoOptions(model_dropout=True))
    assert policy.forward.feeding.packing == "padded"
    (record,) = caplog.records
    assert "train.packing: shared" in record.message and reason in record.message
    assert policy.backward(turns())["tokens/trained"] == sum(len(turn.reply_ids) for turn in turns())


def test_a_model_whose_dropout_is_off_shares_like_any_other(small_model_path: Path) -> None:
    config = ModelConfig(path=str(small_model_path), dtype="float32", device="cpu")
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.1)).eval()
    assert Policy(model, load_chat(config), config, GrpoOptions()).forward.feeding.packing == "shared"


def test_a_window_shorter_than_the_check_is_found_by_what_comes_out(caplog: pytest.LogCaptureFixture) -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    # The model says that it attends to all, but forgets.
    inner = model.model.layers[1].self_attn
    forward = inner.forward
    inner.forward = lambda hidden_states, **rest: forward(hidden_states - 0.5 * hidden_states.roll(1, 1), **rest)
    with caplog.at_level(logging.WARNING, "memfactory"):
        assert usable_packing(model, "shared", torch.float32) == "padded"
    assert "give other results" in caplog.text


def test_attention_dropout_under_any_name_means_padding(
    small_model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ModelConfig(path=str(small_model_path), dtype="float32", device="cpu")
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=400)).eval()
    assert model.config.attn_pdrop == 0.1 and not hasattr(model.config, "attention_dropout")
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING, "memfactory"):
        assert usable_packing(model, "shared", torch.float32) == "padded"
    assert "drops attention weights at random" in caplog.text
    assert not model.training and torch.equal(torch.random.get_rng_state(), before)
    policy = Policy(model, load_chat(config), config, GrpoOptions())
    assert policy.backward(turns())["tokens/trained"] == sum(len(turn.reply_ids) for turn in turns())


def test_layers_without_tree_attention_are_noticed_in_bfloat16(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "vocab_size": 400}
    model = XGLMForCausalLM(XGLMConfig(**sizes, attention_dropout=0.0)).eval()
    with caplog.at_level(logging.WARNING, "memfactory"), torch.autocast("cpu", torch.bfloat16):
        assert usable_packing(model, "shared", torch.bfloat16) == "padded"
    assert "0 of 2 layers compute tree attention" in caplog.text


def test_bfloat16_rounding_does_not_forbid_trimming() -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    module = model.model.layers[-1].mlp
    plain = module.forward
    # As on a GPU, which sums in another order for fewer states: of states of about 0.02 this is 1 %.
    module.forward = lambda states: plain(states) + (2e-4 if len(states) > 1 else 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert can_trim(model, "padded", torch.bfloat16)
    assert not can_trim(model, "padded", torch.float32)


def test_a_last_layer_that_is_called_in_another_way_is_not_trimmed() -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    layer = model.model.layers[-1]
    layer.mlp = Named(layer.mlp)
    assert not can_trim(model, "shared", torch.float32)
    assert not layer.mlp._forward_pre_hooks


def test_a_model_that_takes_no_parts_is_padded(caplog: pytest.LogCaptureFixture) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=400, attn_pdrop=0.0)).eval()
    model.get_decoder = lambda: Deaf(model.transformer)
    with caplog.at_level(logging.WARNING, "memfactory"):
        assert usable_packing(model, "shared", torch.float32) == "padded"
    assert "fail under tree attention" in caplog.text and "attention_plan" in caplog.text


class Named(torch.nn.Module):
    """A feed-forward part that is called by the name of what it is given."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return super().__call__(states=states)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.inner(states)


class Deaf(torch.nn.Module):
    """A decoder that knows no keywords but its own."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, use_cache: bool = False):
        return self.inner(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)
