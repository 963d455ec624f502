"""GMPO, Clip-Cov, KL-Cov, the dual clip and the entropy bonus, with numbers worked out by hand.

Two turns throughout: A = 0.7 with log-ratios [.30, -.30], and A = -1.1 with [.30, -.50, 0, .25].
"""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import pytest
import torch
from pydantic import ValidationError

from memfactory.config.grpo import GrpoOptions
from memfactory.config.losses import LossOptions
from memfactory.policy.logprobs import Distribution, chunked_logprobs
from memfactory.policy.objective import LossInputs, TokenLosses, token_losses
from memfactory.policy.objectives.base import StepTokens, make_objective
from memfactory.registry import OBJECTIVES
from small_policy import gradients, largest_difference, small_policy, some_turns

MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
ADVANTAGES = torch.tensor([0.7, -1.1], dtype=torch.float64)
LOGPROBS = torch.tensor([[-0.5, -1.2, math.nan, math.nan], [-0.2, -2.0, -0.7, -1.5]], dtype=torch.float64)
LOG_RATIO = torch.tensor([[0.30, -0.30, 0, 0], [0.30, -0.50, 0, 0.25]], dtype=torch.float64)
PRECISION = 1e-6
TOKENS = StepTokens(LOGPROBS[MASK], LOG_RATIO[MASK], torch.tensor([0.7, 0.7, -1.1, -1.1, -1.1, -1.1]).double())


def losses(
    *, marked: torch.Tensor | None = None, entropies: torch.Tensor | None = None, **options: object
) -> TokenLosses:
    inputs = LossInputs(ADVANTAGES, MASK, LOGPROBS - LOG_RATIO, marked=marked)
    return token_losses(LOGPROBS, inputs, LossOptions(**options), entropies=entropies)


def test_gmpo_is_the_geometric_mean_of_clipped_ratios() -> None:
    # Bounds of .2 on log-ratios. A > 0: min(d, .2) = [.2, -.3], mean -.05, -.7 e^-.05 = -.665861.
    # A < 0: max(d, -.2) = [.3, -.2, 0, .25], mean .0875, 1.1 e^.0875 = 1.200586.
    result = losses(objective="gmpo")
    assert result.loss[MASK].tolist() == pytest.approx([-0.665861] * 2 + [1.200586] * 4, abs=PRECISION)
    assert result.clipped_high.tolist() == [[True, False, False, False], [False] * 4]
    assert result.clipped_low.tolist() == [[False] * 4, [False, True, False, False]]


def test_a_token_that_gmpo_clips_passes_no_gradient() -> None:
    logprobs = torch.where(MASK, LOGPROBS, 0.0).requires_grad_()
    old = torch.where(MASK, LOGPROBS - LOG_RATIO, 0.0)
    loss = token_losses(logprobs, LossInputs(ADVANTAGES, MASK, old), LossOptions(objective="gmpo")).loss
    # The mean over a turn's tokens is the turn's loss, whose gradient is loss / tokens where nothing is clipped.
    turns = loss.sum(-1) / MASK.sum(-1)
    (gradient,) = torch.autograd.grad(turns.sum(), logprobs)
    assert gradient[MASK].tolist() == pytest.approx(
        [0, -0.665861 / 2, 1.200586 / 4, 0, 1.200586 / 4, 1.200586 / 4], abs=PRECISION
    )


def test_clip_cov_draws_among_tokens_of_high_covariance() -> None:
    # Mean log pi -1.016667, mean A -.5: covariances .62, -.22, -.49, .59, -.19, .29.
    # Of those in (.1, .6), .59 is clipped already (r = e^-.5 < .8 at A < 0).
    objective = make_objective(LossOptions(objective={"name": "clip_cov", "fraction": 0.5, "low": 0.1, "high": 0.6}))
    assert objective.mark(TOKENS, Random(0)) == [5]


def test_clip_cov_draws_its_share_and_at_least_one_token() -> None:
    # Token 0 (r = 1.35 at A > 0) is clipped already; the other five lie in the band.
    for share, expected in ((0.5, 3), (1e-9, 1), (1.0, 5)):
        spec = {"name": "clip_cov", "fraction": share, "low": -0.5, "high": 9.0}
        chosen = make_objective(LossOptions(objective=spec, clip_low=0.9)).mark(TOKENS, Random(1))
        assert len(chosen) == expected and 0 not in chosen


def test_a_token_that_clip_cov_chose_has_no_loss() -> None:
    marked = torch.zeros_like(MASK)
    marked[1, 3] = True
    plain, held = losses(), losses(marked=marked, objective="clip_cov")
    assert held.loss[1, 3] == 0 and held.clipped_high[1, 3]
    assert held.loss[~marked].equal(plain.loss[~marked])


def test_kl_cov_penalizes_the_largest_covariances() -> None:
    objective = make_objective(LossOptions(objective={"name": "kl_cov", "fraction": 1 / 6}))
    assert objective.mark(TOKENS, Random(0)) == [0]
    marked = torch.zeros_like(MASK)
    marked[0, 0] = True
    result = losses(marked=marked, objective={"name": "kl_cov", "penalty": 2.0})
    # -.7 e^.3 + 2 x .3 = -.344901; the others are -r A without a clip.
    others = [-0.7 * math.exp(-0.3), *(1.1 * math.exp(d) for d in (0.3, -0.5, 0, 0.25))]
    assert result.loss[MASK].tolist() == pytest.approx([-0.344901, *others], abs=PRECISION)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_marks_do_not_depend_on_the_micro_batches(small_model_path: Path, name: str) -> None:
    found = []
    for tokens in (20, 10_000):
        spec = {"name": name, "fraction": 0.2, **({"low": -9.0, "high": 9.0} if name == "clip_cov" else {})}
        policy = small_policy(small_model_path, micro_batch_tokens=tokens, loss={"objective": spec})
        turns = policy.with_marks(policy.score_old(some_turns()))
        count = sum(len(turn.reply_ids) for turn in turns)
        assert sum(sum(turn.marks or ()) for turn in turns) == int(0.2 * count)
        policy.backward(turns)
        found.append(gradients(policy))
    assert largest_difference(*found) < 1e-5


def test_dual_clip_leaves_positive_advantages_alone() -> None:
    # c = 1.1 is below 1 + clip_high = 1.2: e^.3 at A > 0 is clipped at 1.2, not at 1.1.
    plain, dual = losses(), losses(dual_clip=1.1)
    assert dual.loss[0].equal(plain.loss[0])
    # At A < 0 no loss is above 1.1 x 1.1.
    assert dual.loss[1].tolist() == pytest.approx([1.21, 0.88, 1.1, 1.21], abs=PRECISION)
    assert dual.clipped_high.tolist() == [[True, False, False, False], [True, False, False, True]]


@pytest.mark.parametrize("wrapped", [False, True], ids=["linear", "any head"])
def test_entropies_carry_their_gradient_where_asked(wrapped: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 20).double()
    used = torch.nn.Sequential(head) if wrapped else head
    hidden = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1, 2, 3, 4, 5, 6, 7])
    weights = torch.linspace(-1, 1, 7, dtype=torch.float64)
    every = (head(hidden)[:, :17] / 0.7).log_softmax(-1)
    whole = every[range(7), targets] @ weights - 0.3 * (every.exp() * every).sum(-1) @ weights.flip(0)
    inputs = (hidden, head.weight, head.bias)
    expected = torch.autograd.grad(whole, inputs)
    logprobs, entropies = chunked_logprobs(hidden, targets, used, Distribution(17, 0.7, 3, True, True))
    assert entropies is not None
    found = torch.autograd.grad(logprobs @ weights + 0.3 * entropies @ weights.flip(0), inputs)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_the_entropy_bonus_lowers_the_loss_by_its_weight() -> None:
    entropies = torch.full_like(LOGPROBS, 2.0)
    plain, rich = losses(), losses(entropies=entropies, entropy_coef=0.01)
    assert rich.loss[MASK].tolist() == pytest.approx((plain.loss[MASK] - 0.02).tolist(), abs=1e-12)
    assert rich.loss[~MASK].tolist() == [0, 0] and rich.policy.equal(plain.policy)
    with pytest.raises(ValueError, match="no entropies"):
        losses(entropy_coef=0.01)


def test_the_entropy_bonus_raises_entropy(small_model_path: Path) -> None:
    policy = small_policy(
        small_model_path, loss={"entropy_coef": 10.0}, optimizer={"learning_rate": 1e-3}, temperature=1.0
    )
    entropies = [policy.update(some_turns())["entropy"] for _ in range(8)]
    assert entropies[-1] > entropies[0] + 0.01


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_what_is_off_the_mask_reaches_no_objective(name: str) -> None:
    poison = torch.tensor([[-1.0, math.nan], [-1.0, -math.inf]])
    mask = torch.tensor([[True, False], [True, False]])
    logprobs = torch.full((2, 2), -1.0, requires_grad=True)
    options = LossOptions(objective=name, clip_high=1.5, kl_coef=0.1, sampler_correction="sequence_mask")
    result = token_losses(logprobs, LossInputs(torch.tensor([1.0, -1.0]), mask, poison, poison, poison), options)
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    assert result.loss[:, 1].tolist() == [0, 0]
    assert gradient[:, 1].tolist() == [0, 0]
    assert gradient[:, 0].isfinite().all()


def test_an_unknown_objective_is_named_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="gspo"):
        LossOptions(objective="gsp")
    with pytest.raises(ValidationError, match="group"):
        GrpoOptions(advantage="grp")
