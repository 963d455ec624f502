"""Loss and gradient of single-turn batches agree with TRL's GRPO loss, for every loss type that both have."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
import torch

from memfactory.config.grpo import GrpoOptions
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.policy import Policy
from small_policy import gradients, some_turns

TEMPERATURE = 0.8
LONGEST = 12
BOUND = 1e-5


@dataclass(frozen=True)
class Theirs:
    """TRL's settings of a case: attributes of the trainer, and of its arguments."""

    trainer: dict[str, object]
    arguments: dict[str, object]


def theirs(loss_type: str, level: str = "token", **arguments: object) -> Theirs:
    return Theirs({"loss_type": loss_type, "importance_sampling_level": level}, arguments)


CASES = {
    "grpo": (theirs("grpo"), {"weighting": "turn"}),
    "bnpo": (theirs("bnpo"), {"weighting": "token"}),
    "dr_grpo": (theirs("dr_grpo"), {"weighting": "constant", "constant_length": LONGEST}),
    "dapo": (theirs("dapo"), {"weighting": "token", "clip_high": 0.28}),
    "two-sided clip": (theirs("dapo", delta=1.5), {"weighting": "token", "clip_high": 0.28, "dual_clip": 1.5}),
    "gspo": (theirs("grpo", "sequence"), {"objective": "gspo", "weighting": "turn", "clip_low": 0.01}),
    "cispo": (theirs("cispo"), {"objective": "cispo", "weighting": "token", "clip_high": 1.2}),
    "sapo": (theirs("sapo"), {"objective": "sapo", "weighting": "turn"}),
    "vespo": (theirs("vespo"), {"objective": "vespo", "weighting": "token"}),
    "unbiased kl": (theirs("dapo", use_bias_correction_kl=True), {"weighting": "token", "kl_unbiased": True}),
}


@pytest.fixture(scope="module")
def policy(small_model_path: Path) -> Policy:
    config = ModelConfig(path=str(small_model_path), dtype="float32", device="cpu")
    options = GrpoOptions(temperature=TEMPERATURE, loss={"kl_coef": 0.1}, logprob_chunk_tokens=7)
    return Policy(load_model(config, training=True), load_chat(config), config, options)


@pytest.fixture(scope="module")
def turns(policy: Policy) -> list[TrainingTurn]:
    """Turns whose old, reference and sampler log-probabilities all differ from the policy's own."""
    draw = Random(3)

    def moved(values: tuple[float, ...], by: float) -> tuple[float, ...]:
        return tuple(value + draw.uniform(-by, by) for value in values)

    return [
        replace(
            turn,
            advantage=draw.uniform(-2, 2),
            old_logprobs=moved(turn.old_logprobs, 0.4),
            reference_logprobs=moved(turn.old_logprobs, 0.5),
            sampler_logprobs=moved(turn.old_logprobs, 0.9),
        )
        for turn in policy.score_old(some_turns())
    ]


@pytest.fixture(scope="module")
def trainer(policy: Policy, tmp_path_factory: pytest.TempPathFactory):
    """TRL's trainer around the same model, beyond its own accumulation and generation."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=4,
        num_generations=4,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        gradient_checkpointing=False,
    )
    made = GRPOTrainer(
        model=policy.model,
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "What is it?"}] * 4),
        processing_class=policy.chat.tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    return made


def their_batch(turns: list[TrainingTurn], pad_id: int) -> dict[str, torch.Tensor]:
    """The turns as TRL holds them: prompts padded on the left, completions on the right."""
    prompt = max(len(turn.prompt_ids) for turn in turns)
    reply = max(len(turn.reply_ids) for turn in turns)

    def left(values: list[int], fill: int) -> list[int]:
        return [fill] * (prompt - len(values)) + values

    def right(values: tuple[float, ...], fill: float = 0) -> list[float]:
        return [*values] + [fill] * (reply - len(values))

    return {
        "prompt_ids": torch.tensor([left(list(turn.prompt_ids), pad_id) for turn in turns]),
        "prompt_mask": torch.tensor([left([1] * len(turn.prompt_ids), 0) for turn in turns]),
        "completion_ids": torch.tensor([right(turn.reply_ids, pad_id) for turn in turns]),
        "completion_mask": torch.tensor([right((1,) * len(turn.reply_ids)) for turn in turns]),
        "advantages": torch.tensor([turn.advantage for turn in turns]),
        "old_per_token_logps": torch.tensor([right(turn.old_logprobs) for turn in turns]),
        "ref_per_token_logps": torch.tensor([right(turn.reference_logprobs) for turn in turns]),
        "importance_sampling_ratio": torch.tensor(
            [
                right(
                    tuple(
                        min(math.exp(old - mu), 2.0)
                        for old, mu in zip(turn.old_logprobs, turn.sampler_logprobs, strict=True)
                    ),
                    1.0,
                )
                for turn in turns
            ]
        ),
        "num_items_in_batch": torch.tensor(float(sum(len(turn.reply_ids) for turn in turns))),
    }


@pytest.mark.parametrize("corrected", [False, True], ids=["", "token truncation"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_agree_with_trl(
    policy: Policy, trainer, turns: list[TrainingTurn], case: str, kl_coef: float, corrected: bool
) -> None:
    settings, options = CASES[case]
    correction = {"sampler_correction": "token_truncate", "correction_high": 2.0} if corrected else {}
    policy.set_loss(GrpoOptions(loss={**options, **correction, "kl_coef": kl_coef}).loss)
    policy.forward.micro_batch_tokens = 60
    mine = policy.backward(turns)["loss"]
    my_gradient = gradients(policy)

    for name, value in settings.trainer.items():
        setattr(trainer, name, value)
    for name, value in {"delta": None, "use_bias_correction_kl": False, **settings.arguments}.items():
        setattr(trainer.args, name, value)
    trainer.beta = kl_coef
    trainer.epsilon_low, trainer.epsilon_high = policy.loss.clip_low, policy.loss.clip_high
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = corrected
    batch = their_batch(turns, policy.chat.pad_id)
    if not corrected:
        del batch["importance_sampling_ratio"]
    policy.optimizer.zero_grad()
    policy.model.train()
    loss = trainer._compute_loss(policy.model, batch)
    loss.backward()
    policy.model.eval()
    their_gradient = gradients(policy)

    assert loss.item() == pytest.approx(mine, abs=BOUND)
    assert max(float(gradient.abs().max()) for gradient in their_gradient) > 1e-2
    for mine_one, theirs_one in zip(my_gradient, their_gradient, strict=True):
        torch.testing.assert_close(mine_one, theirs_one, rtol=0, atol=BOUND)
