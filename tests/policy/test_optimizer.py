"""The kinds of AdamW: offloaded, low-bit, stochastically rounded; what each must leave as it is, and going on."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from memfactory.config import load_config, readiness
from memfactory.config.optimizer import LoraOptions, OptimizerOptions
from memfactory.config.training import TrainerOptions
from memfactory.errors import ConfigError
from memfactory.policy.optimizer import make_optimizer, sum_gradients
from memfactory.policy.sliced_adamw import SlicedAdamW, stochastic_round
from small_policy import small_policy, some_turns

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
TORCHAO = [pytest.param(kind, marks=needs_torchao) for kind in ("adamw_8bit_torchao", "adamw_4bit_torchao")]


@pytest.fixture
def uncompiled():
    """torchao's optimizers without compiling, which takes longer than the rest of this file."""
    with torch.compiler.set_stance("force_eager"):
        yield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(optimizer, parameters, steps, seed=0):
    """The parameters after `steps` updates with made-up gradients."""
    for step in range(steps):
        for index, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=generator(seed + 1000 * step + index))
            parameter.grad = noise * (0.1 + index)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def parameters(dtype=torch.float32, shapes=((6, 9), (11,))):
    return copies([torch.randn(shape, generator=generator(7)).to(dtype) for shape in shapes])


def copies(tensors):
    """New parameters with the values of these, whose gradients are float32."""
    made = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    for parameter in made:
        parameter.grad_dtype = torch.float32
    return made


# Rounding at random


@settings(max_examples=200, deadline=None)
@given(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False))
def test_rounding_gives_a_neighbour_and_exact_numbers_stay(value):
    values = torch.full((64,), value)
    rounded = stochastic_round(values.clone(), generator()).float()
    bits = torch.tensor(value).view(torch.int32)
    towards_zero = (bits & -(2**16)).view(torch.float32)
    away = ((bits & -(2**16)) + 2**16).view(torch.float32)
    if towards_zero == value:
        assert (rounded == value).all()
    else:
        assert ((rounded == towards_zero) | (rounded == away)).all()


@pytest.mark.parametrize("share", [1 / 16, 1 / 3, 0.9])
@pytest.mark.parametrize("start", [1.0, -0.02, 3e-5])
def test_rounding_is_unbiased(start, share):
    low = torch.tensor(start).to(torch.bfloat16).float()
    step = (low.view(torch.int32) + 2**16).view(torch.float32) - low
    exact = low + share * step
    count = 400_000
    rounded = stochastic_round(exact.repeat(count), generator(3)).double()
    up = float(((rounded - low) / step).mean())
    kept = float((exact - low) / step)
    # The share that was rounded up is binomial around `kept`: five standard errors are 4e-3 at most.
    assert up == pytest.approx(kept, abs=5 * (kept * (1 - kept) / count) ** 0.5)


def test_updates_too_small_for_bfloat16_add_up_on_average():
    # Each update is lr = 1e-4 of a weight of 1, whose neighbours are 2^-8 = 39 updates below and 2^-7 above, so
    # rounding to the nearest never moves it; 100 updates are 0.01 on average.
    weight = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    optimizer = make_optimizer([weight], OptimizerOptions(learning_rate=1e-4))
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    # One weight's steps of 2^-8 have a variance of at most 100 x 1e-4 x 2^-8: five standard errors of the mean.
    assert float(1 - weight.detach().float().mean()) == pytest.approx(0.01, abs=5 * (0.01 * 2**-8 / 20_000) ** 0.5)


# Slices and host memory


@pytest.mark.parametrize("slice_elements", [1, 7, 2**24])
def test_offloaded_moments_train_bit_for_bit_like_torchs_adamw(slice_elements):
    options = OptimizerOptions(learning_rate=1e-2, weight_decay=0.1)
    plain, offloaded = parameters(), parameters()
    expected = trained(make_optimizer(plain, options), plain, 5)
    optimizer = make_optimizer(offloaded, options.model_copy(update={"kind": "adamw_offload"}))
    assert isinstance(optimizer, SlicedAdamW)
    assert optimizer.host_moments
    optimizer.slice_elements = slice_elements
    for found, value in zip(trained(optimizer, offloaded, 5), expected, strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize("kind", ["adamw", "adamw_offload"])
def test_bfloat16_weights_keep_float32_moments_through_a_checkpoint(kind):
    options = OptimizerOptions(learning_rate=1e-3, kind=kind)
    before, straight = parameters(torch.bfloat16), parameters(torch.bfloat16)
    optimizer = make_optimizer(before, options, seed=5)
    trained(optimizer, before, 3)
    after = copies(before)
    resumed = make_optimizer(after, options, seed=5)
    resumed.load_state_dict(optimizer.state_dict())
    assert all(state["exp_avg_sq"].dtype == torch.float32 for state in resumed.state.values())
    whole = trained(make_optimizer(straight, options, seed=5), straight, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, before, strict=True))
    for found, value in zip(trained(resumed, after, 2, seed=50), trained(optimizer, before, 2, seed=50), strict=True):
        assert torch.equal(found, value)
    other = parameters(torch.bfloat16)
    assert not torch.equal(trained(make_optimizer(other, options, seed=6), other, 3)[0], whole[0])


def test_rounding_takes_no_draw_from_the_global_generator():
    weights = parameters(torch.bfloat16)
    state = torch.get_rng_state()
    trained(make_optimizer(weights, OptimizerOptions()), weights, 1)
    assert torch.equal(torch.get_rng_state(), state)


# torchao


@pytest.mark.parametrize("kind", TORCHAO)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_bit_moments_come_back_from_a_checkpoint_bit_for_bit(uncompiled, tmp_path, kind, dtype):
    options = OptimizerOptions(learning_rate=1e-2, kind=kind)
    first = parameters(dtype, shapes=((64, 128), (8,)))
    optimizer = make_optimizer(first, options, seed=2)
    global_state = torch.get_rng_state()
    trained(optimizer, first, 2)
    assert torch.equal(torch.get_rng_state(), global_state)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second = copies(first)
    resumed = make_optimizer(second, options, seed=2)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for found, value in zip(trained(resumed, second, 3, 9), trained(optimizer, first, 3, 9), strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize(("kind", "nearness"), [("adamw_8bit_torchao", 0.05), ("adamw_4bit_torchao", 0.25)])
@needs_torchao
def test_low_bit_moments_train_nearly_like_float32_ones(uncompiled, kind, nearness):
    def moved(kind):
        weight = nn.Parameter(torch.zeros(64, 128))
        return trained(make_optimizer([weight], OptimizerOptions(learning_rate=1e-2, kind=kind)), [weight], 10)[0]

    exact, found = moved("adamw"), moved(kind)
    assert float((found - exact).norm() / exact.norm()) < nearness


# Choosing


def test_auto_is_eight_bits_on_cuda_and_torchaos_for_stochastic():
    auto = OptimizerOptions(kind="auto")
    assert auto.kind_on(cuda=False) == auto.kind_on(cuda=False, stochastic=True) == "adamw"
    assert (auto.kind_on(cuda=True), auto.kind_on(cuda=True, stochastic=True)) == ("adamw_8bit", "adamw_8bit_torchao")
    assert OptimizerOptions(kind="adamw_offload").kind_on(cuda=True) == "adamw_offload"


def test_bitsandbytes_cannot_round_at_random():
    with pytest.raises(ValueError, match="adamw_8bit_torchao"):
        TrainerOptions(master_weights="bfloat16_stochastic", optimizer={"kind": "adamw_8bit"})
    assert TrainerOptions(master_weights="bfloat16_stochastic", lora=LoraOptions()).masters == "float32"


def test_a_run_without_the_package_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "installed", lambda package: package != "torchao")
    run = "model: tiny\nagent: memory_agent\nenv: longcontext\ndata: {train: {name: facts}}\ntrain: {name: grpo}\n"
    (tmp_path / "run.yaml").write_text(run)
    with pytest.raises(ConfigError, match=r"adamw_4bit_torchao needs .*pip install 'memfactory\[torchao\]'; or use"):
        load_config(tmp_path / "run.yaml", ["train.optimizer.kind=adamw_4bit_torchao"], command="train")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "memfactory.policy.torchao_adamw", raising=False)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ConfigError, match=r"adamw_4bit_torchao needs torchao .*pip install 'memfactory\[torchao\]'"):
        make_optimizer(nn.Linear(1, 1).parameters(), OptimizerOptions(kind="adamw_4bit_torchao"))


# The whole policy

STEEP = {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 2}
BFLOAT16 = {"master_weights": "bfloat16_stochastic", "loss": {"kl_coef": 0.1}, "steps": 6}


@pytest.mark.parametrize("kind", ["adamw", "adamw_offload", *TORCHAO])
def test_a_policy_of_bfloat16_weights_resumes_bit_for_bit(small_model_path, tmp_path, uncompiled, kind):
    options = {**BFLOAT16, "optimizer": {**STEEP, "kind": kind}}
    policy = small_policy(small_model_path, "bfloat16", **options)
    turns = policy.score_reference(some_turns())
    policy.update(turns)
    policy.save_masters(tmp_path)
    torch.save(policy.optimizer_state(), tmp_path / "optimizer.pt")
    resumed = small_policy(small_model_path, "bfloat16", **options)
    resumed.load(tmp_path, torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for _ in range(2):
        assert policy.update(turns) == resumed.update(turns)
    assert {parameter.dtype for parameter in policy.trained} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(policy.trained, resumed.trained, strict=True))


def test_gradients_of_bfloat16_weights_are_summed_in_float32(small_model_path):
    policy = small_policy(small_model_path, "bfloat16", **BFLOAT16)
    weight = policy.trained[0]
    for _ in range(1000):
        weight.sum().backward()
    # In bfloat16 the sum would stay at 256, from where the next number is 258.
    assert weight.grad.dtype == torch.float32
    assert (weight.grad == 1000).all()


def test_the_reference_of_bfloat16_weights_is_what_they_were(small_model_path):
    policy = small_policy(small_model_path, "bfloat16", **BFLOAT16, optimizer=STEEP)
    turns = some_turns()
    before = policy.score_old(turns)
    policy.update(policy.score_reference(turns))
    after = policy.score_reference(turns)
    assert [turn.reference_logprobs for turn in after] == [turn.old_logprobs for turn in before]


def test_stochastic_weights_need_a_model_computing_in_bfloat16(small_model_path):
    with pytest.raises(ConfigError, match=r"model\.dtype: bfloat16"):
        small_policy(small_model_path, "float32", master_weights="bfloat16_stochastic")


def test_adapters_are_float32_whatever_the_master_weights(small_model_path):
    policy = small_policy(small_model_path, "bfloat16", lora={"rank": 2}, master_weights="bfloat16_stochastic")
    assert {parameter.dtype for parameter in policy.trained} == {torch.float32}


@pytest.mark.parametrize(
    ("packages", "stochastic", "kind"),
    [
        ({"bitsandbytes", "torchao"}, False, "adamw_8bit"),
        ({"bitsandbytes"}, False, "adamw_8bit"),
        ({"torchao"}, False, "adamw_8bit_torchao"),
        ({"torchao"}, True, "adamw_8bit_torchao"),
        ({"bitsandbytes"}, True, "adamw_offload"),  # bitsandbytes cannot round at random
        (set(), False, "adamw_offload"),
    ],
)
def test_auto_on_cuda_takes_what_is_installed(packages, stochastic, kind):
    auto = OptimizerOptions(kind="auto")
    assert auto.kind_on(cuda=True, stochastic=stochastic, packages=packages) == kind
    assert auto.kind_on(cuda=False, stochastic=stochastic, packages=packages) == "adamw"


def test_torchao_counts_only_with_a_compiler(monkeypatch):
    monkeypatch.setattr(readiness, "installed", lambda package: package == "torchao")
    assert readiness.low_bit_packages() == {"torchao"}
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert readiness.low_bit_packages() == set()
    warning = " ".join(readiness.second_choice(TrainerOptions(optimizer={"kind": "auto"})))
    assert "adamw_offload" in warning and "torchao finds no C compiler" in warning


def test_a_run_that_auto_would_resume_otherwise_is_refused(small_model_path):
    policy = small_policy(small_model_path, optimizer={"kind": "auto"})
    policy.update(some_turns())
    state = policy.optimizer_state()
    assert state["kind"] == "adamw"
    with pytest.raises(ConfigError, match=r"selected adamw_8bit .* selects adamw here.*memfactory\[bitsandbytes\]"):
        policy.load(small_model_path, {**state, "kind": "adamw_8bit"})


# Summing over processes


def test_gradients_are_summed_in_place(monkeypatch):
    summed = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: summed.append(tensor.mul_(2)))
    first, second = parameters()
    first.grad = torch.ones_like(first)
    own = first.grad
    sum_gradients(SimpleNamespace(num_processes=2), [first, second])
    # A copy would hold the largest gradient, that of the embedding, twice.
    assert first.grad is own is summed[0] and torch.equal(own, torch.full_like(first, 2))
    assert torch.equal(second.grad, torch.zeros_like(second))
    sum_gradients(SimpleNamespace(num_processes=1), [first])
    assert len(summed) == 2
