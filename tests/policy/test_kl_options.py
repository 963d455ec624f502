"""An adapted KL coefficient, the KL in the reward, and references that follow the policy; numbers by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from memfactory.config.grpo import GrpoOptions
from memfactory.config.losses import LossOptions
from memfactory.config.optimizer import LoraOptions
from memfactory.config.training import TrainerOptions
from memfactory.errors import MemFactoryError
from memfactory.plan.footprint import Architecture, Load, memory_by_component
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.kl_control import KlCoefficient
from memfactory.policy.kl_reward import KlPenalty
from memfactory.policy.objective import LossInputs, token_losses
from memfactory.types import Group, Reply, Reward, Task, Tokens, Trajectory, Turn
from small_policy import small_policy, some_turns

RATE = {"learning_rate": 1e-2}


def test_the_kl_coefficient_follows_its_target() -> None:
    kl = KlCoefficient(LossOptions(kl_coef=0.01, kl_target=0.1, kl_horizon=1000))
    # KL .2: e = clip(1, .2) = .2, so beta grows by 1 + .2 x 64 / 1000.
    kl.adapt(0.2, 64)
    assert kl.value == pytest.approx(0.01 * 1.0128)
    # KL .09: e = -.1.
    kl.adapt(0.09, 64)
    assert kl.value == pytest.approx(0.01 * 1.0128 * (1 - 0.0064))


def test_without_a_target_the_kl_coefficient_is_constant() -> None:
    kl = KlCoefficient(LossOptions(kl_coef=0.01))
    kl.adapt(5.0, 1000)
    assert kl.value == 0.01 and not kl.adapts


@pytest.mark.parametrize("key", ["kl_in_reward", "kl_target", "reference_sync_steps"])
def test_options_of_the_kl_need_a_kl(key: str) -> None:
    with pytest.raises(ValidationError, match=f"{key} needs a kl_coef above 0"):
        LossOptions(**{key: 1})


@dataclass
class Scorer:
    """Scores every reply token with -1 under the policy and with -1.5 under the reference."""

    loss: LossOptions
    kl: KlCoefficient = field(init=False)

    def __post_init__(self) -> None:
        self.kl = KlCoefficient(self.loss)

    def score_old(self, turns: list[TrainingTurn]) -> list[TrainingTurn]:
        return [replace(turn, old_logprobs=(-1.0,) * len(turn.reply_ids)) for turn in turns]

    def score_reference(self, turns: list[TrainingTurn]) -> list[TrainingTurn]:
        return [replace(turn, reference_logprobs=(-1.5,) * len(turn.reply_ids)) for turn in turns]


def turn(step: str, tokens: int) -> Turn:
    ids = tuple(range(tokens))
    return Turn(step, (), Reply("", "stop", Tokens((1,), ids, (-1.0,) * tokens)), True)


def group() -> Group:
    """A trajectory of 2 + 3 tokens with reward 1, one of 4 tokens with reward 1, one whose reward is unknown."""
    return Group(
        Task(id="t", question="q", answers=()),
        (
            Trajectory(0, (turn("update", 2), turn("answer", 3)), "", Reward(1.0, {}, {"update": 0.5})),
            Trajectory(1, (turn("answer", 4),), "", Reward(1.0)),
            Trajectory(2, (turn("answer", 1),), "", Reward(None)),
        ),
    )


def test_the_kl_is_taken_off_the_reward_of_a_trajectory() -> None:
    penalty = KlPenalty(Scorer(LossOptions(kl_coef=0.1, kl_in_reward=True, kl_estimator="k1")), [group()])
    # k1 = log pi - log ref = .5 a token: 1 - .1 x 2.5 and 1 - .1 x 2; the step with a reward of its own: .5 - .1 x 1.
    rewards = [trajectory.reward for trajectory in penalty.credited[0].trajectories]
    assert [reward.total for reward in rewards] == [pytest.approx(0.75), pytest.approx(0.8), None]
    assert rewards[0].of_step("update") == pytest.approx(0.4)
    # 10 tokens of .5; a penalty of .1 x 5 over three trajectories.
    assert penalty.measured() == {"kl": pytest.approx(0.5), "kl_penalty": pytest.approx(0.5 / 3)}


def test_with_the_kl_in_the_reward_the_loss_has_none() -> None:
    options = LossOptions(kl_coef=0.1, kl_in_reward=True)
    logprobs, mask = torch.tensor([[-1.0]]), torch.tensor([[True]])
    result = token_losses(logprobs, LossInputs(torch.tensor([1.0]), mask), options)
    assert float(result.loss) == -1


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, alpha=8)])
def test_a_reset_reference_is_the_policy_of_that_step(small_model_path: Path, lora: LoraOptions | None) -> None:
    policy = small_policy(small_model_path, lora=lora, optimizer=RATE, loss={"kl_coef": 0.1, "reference_sync_steps": 2})
    turns = some_turns()
    first = policy.score_reference(turns)
    for step in (1, 2):
        policy.update(policy.score_reference(turns))
        policy.after_step(step, None, 1)
        if step == 1:
            assert policy.score_reference(turns) == first
    own = [scored.old_logprobs for scored in policy.score_old(turns)]
    moved = [scored.reference_logprobs for scored in policy.score_reference(turns)]
    assert own == moved != [scored.reference_logprobs for scored in first]


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, alpha=8)])
def test_an_averaged_reference_mixes_the_weights(small_model_path: Path, lora: LoraOptions | None) -> None:
    loss = {"kl_coef": 0.1, "reference_sync_steps": 1, "reference_mixup": 0.25}
    policy = small_policy(small_model_path, lora=lora, optimizer=RATE, loss=loss)
    before = [parameter.detach().clone() for parameter in policy.trained]
    policy.update(policy.score_reference(some_turns()))
    policy.after_step(1, None, 1)
    assert policy.reference is not None
    for own, old, new in zip(policy.reference._values(), before, policy.trained, strict=True):
        torch.testing.assert_close(own, 0.75 * old + 0.25 * new.detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, alpha=8)])
def test_a_moving_reference_and_its_weight_are_in_checkpoints(
    small_model_path: Path, tmp_path: Path, lora: LoraOptions | None
) -> None:
    loss = {"kl_coef": 0.1, "reference_sync_steps": 1, "reference_mixup": 0.25, "kl_target": 1e-3, "kl_horizon": 10}
    made = [small_policy(small_model_path, lora=lora, optimizer=RATE, loss=loss) for _ in range(2)]
    turns = some_turns()
    made[0].update(made[0].score_reference(turns))
    made[0].after_step(1, 0.5, 8)
    made[0].save_masters(tmp_path)
    made[1].load(tmp_path, made[0].optimizer_state())
    assert made[1].kl.value == made[0].kl.value == pytest.approx(0.1 * 1.16)
    assert made[1].score_reference(turns) == made[0].score_reference(turns)
    (tmp_path / "reference.safetensors").unlink()
    with pytest.raises(MemFactoryError, match=r"no reference\.safetensors"):
        made[1].load(tmp_path, made[0].optimizer_state())


def test_the_plan_counts_what_a_moving_reference_holds() -> None:
    sizes = Architecture(1000, 200, 2, 10, 20, 20, 10, 10, 64)

    def planned(lora: LoraOptions | None = None, continued: bool = False, **loss: object) -> int:
        options: TrainerOptions = GrpoOptions(lora=lora, loss={"kl_coef": 0.1, **loss})
        load = Load("bfloat16", kv_tokens=1, micro_tokens=8, reference=True, cuda=True, continued=continued)
        found = memory_by_component(sizes, options, load)
        return found["reference"]

    # 800 weights of two bytes and an embedding of 200 in float32; a moving average: 1,000 of four bytes.
    assert planned() == planned(reference_sync_steps=5) == 2400
    assert planned(reference_sync_steps=5, reference_mixup=0.5) == 4000
    # Adapters of rank 1: 2 layers of (10 + 10) + (10 + 10) + (10 + 10) + (10 + 10) + 3 x 30 weights.
    assert planned(LoraOptions(rank=1)) == 0
    assert planned(LoraOptions(rank=1), reference_sync_steps=5) == 4 * 2 * 170
    # So do the first values of adapters that go on.
    assert planned(LoraOptions(rank=1), continued=True) == 4 * 2 * 170
