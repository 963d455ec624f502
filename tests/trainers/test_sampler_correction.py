"""The importance correction that is on where the engine and the trainer round differently, and its measures."""

import json
import math

import pytest
import torch

from memfactory.config import load_config
from memfactory.config.correction import chosen_correction, with_correction
from memfactory.config.losses import LossOptions
from memfactory.config.trained import trainer_options
from memfactory.plan.memory import Device
from memfactory.plan.plan import make_plan
from memfactory.policy.objective import LossInputs, token_losses
from memfactory.training import run_training
from small_policy import small_policy, some_turns

GPU = Device("a GPU of 24 GiB", 24 * 2**30, cuda=True)


@pytest.fixture
def config(tmp_path, small_model_path):
    (tmp_path / "run.yaml").write_text(
        f"model: {{path: {small_model_path}, cpu_threads: 1}}\n"
        "agent: {name: memory_agent, chunk_tokens: 100, memory_tokens: 6, answer_tokens: 6}\n"
        "env: {name: longcontext, rewards: {em: 1.0, format: 0.1}}\ndata: {train: {name: facts, rows: 4}}\n"
        "train: {name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, count_zero_variance: true, save_every: 0}\n"
        "trackers: []\n"
    )

    def loaded(*overrides):
        return load_config(tmp_path / "run.yaml", [*overrides, f"output={tmp_path / 'run'}"])

    return loaded


@pytest.mark.parametrize(
    ("overrides", "cuda", "correction"),
    [
        ((), False, "none"),
        ((), True, "token_truncate"),  # auto computes in bfloat16 on a GPU
        (("model.dtype=float32",), True, "none"),
        (("model.dtype=bfloat16",), False, "token_truncate"),
        (("engine.kind=vllm", "model.dtype=float32"), True, "token_truncate"),
        (("engine.kind=vllm_server", "model.dtype=float32"), False, "token_truncate"),
    ],
)
def test_it_is_on_where_the_engine_rounds_differently(config, overrides, cuda, correction):
    found = config(*overrides).config
    assert chosen_correction(found, cuda=cuda)[0] == correction
    options = trainer_options(found)
    assert with_correction(options, found, cuda=cuda).loss.sampler_correction == correction
    mine = trainer_options(config(*overrides, "train.loss.sampler_correction=sequence_mask").config)
    assert with_correction(mine, found, cuda=cuda) is mine


def test_the_plan_names_it(config):
    work = dict(make_plan(config(), GPU).work)
    assert work["importance correction"].startswith("token_truncate, because the engine and the trainer round")
    assert "importance correction" not in dict(make_plan(config("model.dtype=float32"), GPU).work)


@pytest.mark.parametrize(("dtype", "corrected"), [("float32", False), ("bfloat16", True)])
def test_a_run_measures_the_weights_only_where_they_count(config, caplog, dtype, corrected):
    caplog.set_level("INFO")
    folder = run_training(config(f"model.dtype={dtype}"))
    (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert ("auto takes token_truncate, because the engine" in caplog.text) == corrected
    assert ("correction/mean" in row) == ("correction/cut" in row) == corrected
    if corrected:
        assert row["correction/mean"] == pytest.approx(1, abs=0.2) and 0 <= row["correction/cut"] < 0.2


def test_float32_trains_with_the_same_bits_as_without_it(small_model_path):
    def trained(correction):
        policy = small_policy(small_model_path, loss={"sampler_correction": correction})
        measures = policy.update(some_turns())
        return measures, [parameter.detach().clone() for parameter in policy.trained]

    (auto, weights), (none, same) = trained("auto"), trained("none")
    assert auto == none and all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


def test_turns_without_logprobs_are_not_corrected_by_auto(config, small_model_path, caplog):
    """A user's trainer may not know them."""
    found = config("model.dtype=bfloat16")
    options = with_correction(trainer_options(found.config), found.config, cuda=False)
    turns = some_turns(sampled=False)

    def trained(loss):
        policy = small_policy(small_model_path)
        policy.set_loss(loss)
        return [policy.update(turns) for _ in range(2)]

    assert options.loss.sampler_correction == "token_truncate"
    measures = trained(options.loss)
    (warning,) = [record.message for record in caplog.records if "have no sampler_logprobs" in record.message]
    assert "leaves out token_truncate, which train.loss.sampler_correction: auto selected" in warning
    assert measures == trained(LossOptions(sampler_correction="none"))
    with pytest.raises(ValueError, match="token_truncate needs the sampler's log-probabilities"):
        trained(LossOptions(sampler_correction="token_truncate"))


# One turn of three tokens, sampled by e^.1, e^1 and e^-1 too seldom: weights 1.105171, 2.718282 and 0.367879.
LOGPROBS = torch.tensor([[-1.0, -1.0, -1.0]])
SAMPLED = LOGPROBS - torch.tensor([0.1, 1, -1])
INPUTS = LossInputs(torch.ones(1), torch.ones(1, 3, dtype=torch.bool), sampler_logprobs=SAMPLED)


@pytest.mark.parametrize(
    ("correction", "cut"),
    [
        ("token_truncate", [False, True, False]),
        ("token_mask", [False, True, True]),
        ("sequence_truncate", [False, False, False]),  # e^(.1 / 3) of the whole turn
        ("sequence_mask", [False, False, False]),
    ],
)
def test_cut_tokens_are_those_that_were_truncated_or_masked(correction, cut):
    losses = token_losses(LOGPROBS, INPUTS, LossOptions(sampler_correction=correction))
    assert losses.cut.tolist() == [cut]
    if correction == "token_truncate":
        assert losses.correction.tolist() == [pytest.approx([math.exp(0.1), 2, math.exp(-1)])]
