"""Advantages, per-token losses, KL estimators and corrections against numbers worked out by hand in float64.

Two rows throughout: A = 0.7 with log-ratios [.30, -.30], and A = -1.1 with [.30, -.50, 0, .25].
"""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from memfactory.config.losses import LossOptions
from memfactory.policy.batch import TrainingTurn, token_weights
from memfactory.policy.objective import LossInputs, TokenLosses, advantages, deviation, kl_estimate, token_losses

NAN = math.nan
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
ADVANTAGES = torch.tensor([0.7, -1.1], dtype=torch.float64)
LOGPROBS = torch.tensor([[-0.5, -1.2, NAN, NAN], [-0.2, -2.0, -0.7, -1.5]], dtype=torch.float64)
LOG_RATIO = torch.tensor([[0.30, -0.30, 0, 0], [0.30, -0.50, 0, 0.25]], dtype=torch.float64)
REFERENCE = torch.tensor([[-0.6, -1.0, NAN, NAN], [-0.25, -1.5, -0.7, -1.9]], dtype=torch.float64)
PRECISION = 1e-6


def losses(**options: object) -> TokenLosses:
    return token_losses(LOGPROBS, LossInputs(ADVANTAGES, MASK, LOGPROBS - LOG_RATIO, REFERENCE), LossOptions(**options))


def aggregated(values: Tensor, **options: object) -> float:
    """The loss of the two rows under a weighting, through the weights that training uses."""
    turns = [TrainingTurn((1,), (1,) * length, 1.0, row, row, "step") for row, length in enumerate((2, 4))]
    weights = torch.tensor(token_weights(turns, LossOptions(**options)), dtype=torch.float64)
    return float((weights[:, None] * values).sum())


def rows(values: Tensor) -> list[float]:
    return values[MASK].tolist()


# objective options, six per-token losses, mean of row means, token mean, constant with length 8
TABLE = {
    "clip": (
        {"clip_low": 0.2, "clip_high": 0.2},
        [-0.84, -0.518573, 1.484845, 0.88, 1.1, 1.412428],
        (0.270016, 0.586450, 0.219919),
    ),
    "clip higher": (
        {"clip_low": 0.2, "clip_high": 0.28},
        [-0.896, -0.518573, 1.484845, 0.88, 1.1, 1.412428],
        (0.256016, 0.577117, 0.216419),
    ),
    "dual clip": (
        {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 1.3},
        [-0.896, -0.518573, 1.43, 0.88, 1.1, 1.412428],
        (0.249160, 0.567976, 0.212991),
    ),
    "cispo": (
        {"objective": "cispo", "clip_high": 1.28},
        [0.448, 0.622287, -0.2816, -1.334367, -0.77, -2.112],
        (-0.294674, -0.571280, -0.214230),
    ),
    "sapo": (
        {"objective": "sapo"},
        [-1.642433, -1.219582, 2.475813, 1.668475, 2.095238, 2.405371],
        (0.365108, 0.963814, 0.361430),
    ),
    # Ratios exp(0) = 1 and exp(.05 / 4) = 1.012578: rows of -.7 and 1.113836, whose mean is .206918.
    "gspo": (
        {"objective": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
        [-0.7, -0.7, 1.113836, 1.113836, 1.113836, 1.113836],
        (0.206918, (2 * -0.7 + 4 * 1.1138358) / 6, (2 * -0.7 + 4 * 1.1138358) / 16),
    ),
    # phi(1) = 1 and phi(exp .05) = exp(2 + .15 - 2 e^.05) = 1.048602.
    "vespo": (
        {"objective": "vespo"},
        [0.35, 0.84, -0.230692, -2.306924, -0.807424, -1.730193],
        (-0.336904, -0.647539, -0.242827),
    ),
    # Ratios e^.3 -> 1.2, e^-.3 -> .8; e^.3 -> 1.2, e^-.5 -> .8, 1, e^.25 -> 1.2; loss -ratio A log pi:
    # .42, .672; -.264, -1.76, -.77, -1.98.
    "reinforce": (
        {"objective": "reinforce"},
        [0.42, 0.672, -0.264, -1.76, -0.77, -1.98],
        ((0.546 - 1.1935) / 2, (1.092 - 4.774) / 6, (1.092 - 4.774) / 16),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_objective_gives_the_losses_worked_out_by_hand(name: str) -> None:
    options, per_token, (turn, token, constant) = TABLE[name]
    result = losses(**options)
    assert rows(result.loss) == pytest.approx(per_token, abs=PRECISION)
    assert result.loss[~MASK].tolist() == [0.0, 0.0]
    assert aggregated(result.loss, weighting="turn") == pytest.approx(turn, abs=PRECISION)
    assert aggregated(result.loss, weighting="token") == pytest.approx(token, abs=PRECISION)
    assert aggregated(result.loss, weighting="constant", constant_length=8) == pytest.approx(constant, abs=PRECISION)


@pytest.mark.parametrize(
    ("estimator", "per_token", "turn", "token"),
    [
        ("k1", [0.1, -0.2, 0.05, -0.5, 0, 0.4], -0.031250, -0.025000),
        ("k2", [0.005, 0.02, 0.00125, 0.125, 0, 0.08], 0.032031, 0.038542),
        ("k3", [0.004837, 0.021403, 0.001229, 0.148721, 0, 0.070320], 0.034094, 0.041085),
    ],
)
def test_every_kl_estimator_gives_the_values_worked_out_by_hand(
    estimator: str, per_token: list[float], turn: float, token: float
) -> None:
    kl = losses(kl_estimator=estimator).kl
    assert kl is not None
    assert rows(kl) == pytest.approx(per_token, abs=PRECISION)
    assert aggregated(kl, weighting="turn") == pytest.approx(turn, abs=PRECISION)
    assert aggregated(kl, weighting="token") == pytest.approx(token, abs=PRECISION)


def test_the_kl_term_has_its_coefficient_and_no_correction() -> None:
    options = LossOptions(kl_coef=0.5, sampler_correction="token_truncate", correction_high=2.0)
    old = LOGPROBS - LOG_RATIO
    result = token_losses(LOGPROBS, LossInputs(ADVANTAGES, MASK, old, REFERENCE, old - math.log(3)), options)
    # Every weight is 3, cut to 2: the first token is 2 x -.84 + .5 x .004837.
    assert float(result.policy[0, 0]) == pytest.approx(-1.68, abs=PRECISION)
    assert float(result.loss[0, 0]) == pytest.approx(-1.68 + 0.5 * 0.004837, abs=PRECISION)


def test_the_unbiased_kl_has_the_gradient_of_the_kl_itself() -> None:
    # Two tokens with logits (z, 0) against a reference of (0, 0): KL = sum p log p + log 2, and dKL/dz is
    # p (1 - p) z. Summed over what can be drawn, weighed by its probability, the loss's gradient must be that.
    z = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    logprobs = torch.stack([z, torch.zeros_like(z)]).log_softmax(-1)[:, None]
    mask = torch.ones(2, 1, dtype=torch.bool)
    reference = torch.full((2, 1), math.log(0.5), dtype=torch.float64)
    slopes = []
    for unbiased in (True, False):
        options = LossOptions(kl_coef=1.0, kl_unbiased=unbiased)
        kl = token_losses(logprobs, LossInputs(torch.zeros(2), mask, None, reference), options).loss
        slopes.append(float(torch.autograd.grad((logprobs.detach().exp() * kl).sum(), z, retain_graph=True)[0]))
    p = 1 / (1 + math.exp(-0.8))
    assert slopes[0] == pytest.approx(p * (1 - p) * 0.8, abs=1e-12)
    assert abs(slopes[1] - slopes[0]) > 0.01


def test_k3_is_exact_in_float32_also_for_half_precision() -> None:
    # u = .01: u^2 / 2 + u^3 / 6 = 5.0167e-5, where bfloat16 arithmetic would give -2.2e-3.
    exact = kl_estimate(torch.tensor([-1.01]), torch.tensor([-1.0]), "k3")
    assert float(exact) == pytest.approx(5.0167e-5, rel=1e-4)
    # bfloat16 itself holds -1.0 and -1.0078125 (u = 2^-7): 3.0518e-5 + 7.947e-8.
    half = kl_estimate(
        torch.tensor([-1.0078125], dtype=torch.bfloat16), torch.tensor([-1.0], dtype=torch.bfloat16), "k3"
    )
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(3.0597e-5, rel=1e-4)


def test_on_policy_the_ratio_is_one_with_the_policy_gradient() -> None:
    logprobs = torch.where(MASK, LOGPROBS, 0.0).requires_grad_()
    result = token_losses(logprobs, LossInputs(ADVANTAGES, MASK), LossOptions())
    assert rows(result.ratio) == [1.0] * 6
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    # d(-r A) / d log pi = -A at r = 1.
    assert gradient.tolist() == [[-0.7, -0.7, 0, 0], [1.1, 1.1, 1.1, 1.1]]


def test_a_clipped_token_has_no_gradient_and_is_counted_at_its_bound() -> None:
    logprobs = torch.where(MASK, LOGPROBS, 0.0).requires_grad_()
    old = torch.where(MASK, LOGPROBS - LOG_RATIO, 0.0)
    result = token_losses(logprobs, LossInputs(ADVANTAGES, MASK, old), LossOptions())
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    # A > 0 is clipped above at d = .30 (r = 1.35), A < 0 below at d = -.50 (r = .61); the rest is -r A.
    expected = [0, -0.7 * math.exp(-0.3), 1.1 * math.exp(0.3), 0, 1.1, 1.1 * math.exp(0.25)]
    assert rows(gradient) == pytest.approx(expected, abs=1e-12)
    assert result.clipped_high.tolist() == [[True, False, False, False], [False] * 4]
    assert result.clipped_low.tolist() == [[False] * 4, [False, True, False, False]]


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        # min(r, 1.28): e^.3 -> 1.28, e^-.3; e^.3 -> 1.28, e^-.5, 1, e^.25 -> 1.28.
        ("cispo", [1.28, math.exp(-0.3), 1.28, math.exp(-0.5), 1, 1.28]),
        # clip(r, .8, 2.28)
        ("reinforce", [math.exp(0.3), 0.8, math.exp(0.3), 0.8, 1, math.exp(0.25)]),
        # phi(1) and phi(e^.05)
        ("vespo", [1, 1, *[math.exp(2 + 3 * 0.05 - 2 * math.exp(0.05))] * 4]),
    ],
)
def test_a_weight_on_log_pi_passes_no_gradient_itself(objective: str, weights: list[float]) -> None:
    logprobs = torch.where(MASK, LOGPROBS, 0.0).requires_grad_()
    old = torch.where(MASK, LOGPROBS - LOG_RATIO, 0.0)
    result = token_losses(logprobs, LossInputs(ADVANTAGES, MASK, old), LossOptions(objective=objective, clip_high=1.28))
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    expected = [-a * w for a, w in zip([0.7, 0.7, -1.1, -1.1, -1.1, -1.1], weights, strict=True)]
    assert rows(gradient) == pytest.approx(expected, abs=1e-12)


def test_the_dual_clip_bounds_bad_tokens_whose_ratio_grew() -> None:
    high = losses(dual_clip=1.3).clipped_high
    # d = .30 is r = 1.35 > 1.3 at A < 0; d = .25 is r = 1.284, inside.
    assert high.tolist() == [[True, False, False, False], [True, False, False, False]]


def test_nan_off_the_mask_reaches_neither_loss_nor_gradient() -> None:
    poison = torch.tensor([[-1.0, NAN], [-1.0, -math.inf]])
    mask = torch.tensor([[True, False], [True, False]])
    for objective in ("ppo", "gspo", "cispo", "sapo", "vespo", "reinforce"):
        logprobs = torch.full((2, 2), -1.0, requires_grad=True)
        options = LossOptions(
            objective=objective, clip_high=1.5, kl_coef=0.1, sampler_correction="sequence_mask", dual_clip=3.0
        )
        result = token_losses(logprobs, LossInputs(torch.tensor([1.0, -1.0]), mask, poison, poison, poison), options)
        (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
        assert result.loss[:, 1].tolist() == [0, 0]
        assert gradient[:, 1].tolist() == [0, 0]
        assert gradient[:, 0].isfinite().all()


def test_a_huge_log_ratio_is_clamped_to_twenty_before_the_exponential() -> None:
    inputs = LossInputs(torch.tensor([-1.0]), torch.tensor([[True]]), torch.tensor([[-1001.0]]))
    result = token_losses(torch.tensor([[-1.0]]), inputs, LossOptions())
    assert float(result.loss) == pytest.approx(math.exp(20), rel=1e-6)
    far = kl_estimate(torch.tensor([-1001.0]), torch.tensor([-1.0]), "k3")
    assert float(far) == pytest.approx(math.exp(20) - 21, rel=1e-6)


LOG_WEIGHTS = torch.tensor([[0.05, -0.9, 0.02, 1.3]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"sampler_correction": "token_truncate"}, [1.051271, 0.40657, 1.020201, 2]),
        ({"sampler_correction": "token_mask"}, [1.051271, 0, 1.020201, 0]),
        # The sum of the logs is .47: the product is e^.47, the geometric mean e^.1175.
        ({"sampler_correction": "sequence_truncate", "correction_turn": "product"}, [1.599994] * 4),
        ({"sampler_correction": "sequence_truncate"}, [1.124682] * 4),
        ({"sampler_correction": "sequence_mask"}, [1.124682] * 4),
        (
            {"sampler_correction": "sequence_mask", "correction_turn": "product", "correction_high": 1.5},
            [0] * 4,
        ),
    ],
)
def test_sampler_corrections_give_the_weights_worked_out_by_hand(
    options: dict[str, object], weights: list[float]
) -> None:
    logprobs = torch.full((1, 4), -1.0, dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    advantage = torch.ones(1, dtype=torch.float64)
    result = token_losses(
        logprobs, LossInputs(advantage, mask, logprobs, sampler_logprobs=logprobs - LOG_WEIGHTS), LossOptions(**options)
    )
    assert result.correction is not None
    assert result.correction[0].tolist() == pytest.approx(weights, abs=PRECISION)
    # A = 1 and r = 1, so the loss is minus the weight.
    assert result.loss[0].tolist() == pytest.approx([-weight for weight in weights], abs=PRECISION)


def test_vespo_takes_the_corrections_into_its_turn_weight() -> None:
    logprobs = torch.full((1, 4), -1.0, dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    options = LossOptions(objective="vespo", sampler_correction="token_truncate", correction_high=10.0)
    result = token_losses(
        logprobs, LossInputs(torch.ones(1), mask, logprobs, sampler_logprobs=logprobs - LOG_WEIGHTS), options
    )
    # w = e^.47, so phi = exp(3 + 2 x .47 - 3 e^.47) = .421796 and the loss is phi.
    assert result.loss[0].tolist() == pytest.approx([math.exp(3.94 - 3 * math.exp(0.47))] * 4, abs=PRECISION)


@pytest.mark.parametrize(
    ("rewards", "normalize", "epsilon", "expected"),
    [
        ([1, 0, 0, 1], "std", 1e-4, [0.865875, -0.865875, -0.865875, 0.865875]),
        ([1, 0, 0, 1], "std", 1e-6, [0.866024, -0.866024, -0.866024, 0.866024]),
        ([1, 0, 0, 1], "none", 1e-4, [0.5, -0.5, -0.5, 0.5]),
        ([1, 0, 0, 0], "std", 1e-4, [1.4997, -0.4999, -0.4999, -0.4999]),
        ([1, 0, 0, 0], "none", 1e-4, [0.75, -0.25, -0.25, -0.25]),
        ([1, 0, 0, 1], "population_std", 1e-6, [0.999998, -0.999998, -0.999998, 0.999998]),
        ([1, 0, 0, 0], "population_std", 1e-6, [1.732047, -0.577349, -0.577349, -0.577349]),
        ([1, 0, 0, 0], "mean", 1e-4, [3.0, -1.0, -1.0, -1.0]),
        # The mean is 0: nothing to divide by.
        ([-1, 0, 0, 1], "mean", 1e-4, [-1.0, 0.0, 0.0, 1.0]),
        # The unknown one counts in neither mean nor deviation: mean .5, deviation .707107.
        ([1, None, 0], "std", 1e-4, [0.707007, None, -0.707007]),
    ],
)
def test_advantages_are_those_worked_out_by_hand(
    rewards: list[float | None], normalize: str, epsilon: float, expected: list[float | None]
) -> None:
    given = advantages(rewards, normalize, epsilon)
    for mine, theirs in zip(given, expected, strict=True):
        assert mine == theirs if theirs is None else mine == pytest.approx(theirs, abs=PRECISION)


def test_the_batch_deviation_divides_every_group_alike() -> None:
    spread = deviation([1, 0, 0, 1, 1, 0, 0, 0])
    assert spread == pytest.approx(0.517549, abs=PRECISION)
    first = advantages([1, 0, 0, 1], "batch_std", 1e-4, spread)
    second = advantages([1, 0, 0, 0], "batch_std", 1e-4, spread)
    assert first == pytest.approx([0.96591, -0.96591, -0.96591, 0.96591], abs=1e-5)
    assert second == pytest.approx([1.44886, -0.48295, -0.48295, -0.48295], abs=1e-5)


def test_equal_rewards_give_exactly_zero_despite_rounding() -> None:
    # The mean of three times 0.1 is not 0.1 in binary.
    for normalize in ("std", "none"):
        assert advantages([0.1, 0.1, 0.1], normalize) == [0.0, 0.0, 0.0]
    assert advantages([0.1, 0.1, 0.1], "batch_std", 1e-4, 0.0) == [0.0, 0.0, 0.0]


def test_a_lone_reward_gives_zero_and_an_unknown_one_stays_unknown() -> None:
    assert advantages([0.3]) == [0.0]
    assert advantages([None, 0.3, None]) == [None, 0.0, None]
    assert advantages([None]) == [None]


def test_a_reward_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite or None"):
        advantages([1.0, NAN])


def test_missing_logprobs_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no reference log-probabilities"):
        token_losses(LOGPROBS, LossInputs(ADVANTAGES, MASK), LossOptions(kl_coef=0.1))
    with pytest.raises(ValueError, match="token_mask needs the sampler"):
        token_losses(LOGPROBS, LossInputs(ADVANTAGES, MASK), LossOptions(sampler_correction="token_mask"))


def test_cispo_refuses_a_bound_that_would_scale_every_token() -> None:
    with pytest.raises(ValidationError, match="largest ratio itself"):
        LossOptions(objective="cispo")
