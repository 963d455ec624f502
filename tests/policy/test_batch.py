"""Groups to training turns, weights and tensors, with numbers counted by hand."""

from __future__ import annotations

import pytest

from memfactory.config.grpo import GrpoOptions
from memfactory.config.losses import LossOptions
from memfactory.policy.batch import (
    Totals,
    TrainingTurn,
    count,
    has_variance,
    step_advantages,
    step_rewards,
    token_weights,
    training_turns,
)
from memfactory.policy.forward import collate
from memfactory.policy.layout import lay_out
from memfactory.types import Group, Reply, Reward, Stop, Task, Tokens, Trajectory, Turn

TASK = Task("task", "What is it?", ("this",))


def turn(step: str = "answer", reply: tuple[int, ...] = (5, 6), stop: Stop = "stop", trainable: bool = True) -> Turn:
    tokens = Tokens((1, 2, 3), reply, tuple(-0.5 for _ in reply))
    return Turn(step, (), Reply("", stop, tokens), trainable)


def group(*attempts: tuple[float | Reward | None, list[Turn]]) -> Group:
    return Group(
        TASK,
        tuple(
            Trajectory(member, tuple(turns), None, reward if isinstance(reward, Reward) else Reward(reward))
            for member, (reward, turns) in enumerate(attempts)
        ),
    )


def plain(reply_length: int, trajectory: int = 0, prompt: int = 0, prompt_length: int = 1) -> TrainingTurn:
    return TrainingTurn((1,) * prompt_length, (2,) * reply_length, 1.0, trajectory, prompt, "step")


DR_GRPO = GrpoOptions(normalize="none")


def test_turns_carry_their_trajectorys_advantage_and_sampled_ids() -> None:
    turns = training_turns([group((1, [turn("update", (7, 8, 9)), turn()]), (0, [turn()]))], DR_GRPO)
    # Rewards 1 and 0 around their mean 1/2.
    assert [(t.step, t.advantage, t.trajectory, t.prompt) for t in turns] == [
        ("update", 0.5, 0, 0),
        ("answer", 0.5, 0, 0),
        ("answer", -0.5, 1, 0),
    ]
    assert turns[0].prompt_ids == (1, 2, 3)
    assert turns[0].reply_ids == (7, 8, 9)
    assert turns[0].sampler_logprobs == (-0.5, -0.5, -0.5)


def test_each_step_is_credited_by_its_own_reward() -> None:
    first = Reward(1.0, steps={"update": 0.0})
    second = Reward(0.0, steps={"update": 1.0})
    turns = training_turns([group((first, [turn("update"), turn()]), (second, [turn("update"), turn()]))], DR_GRPO)
    assert [(t.step, t.advantage) for t in turns] == [
        ("update", -0.5),
        ("answer", 0.5),
        ("update", 0.5),
        ("answer", -0.5),
    ]


def test_attempts_that_never_came_to_a_step_count_in_its_mean() -> None:
    given = step_advantages(group((1, [turn("search"), turn()]), (0, [turn()]), (0.5, [turn()])), DR_GRPO)
    assert given == {"search": [0.5, -0.5, 0.0], "answer": [0.5, -0.5, 0.0]}


def test_a_group_without_variance_trains_nothing_and_moves_no_count() -> None:
    equal = group((0.1, [turn()]), (0.1, [turn()]), (0.1, [turn()]))
    differing = group((1, [turn()]), (0.5, [turn()]), (0, [turn()]))
    assert not has_variance(equal)
    assert has_variance(differing)
    turns = training_turns([equal, differing], DR_GRPO)
    # The attempt in the middle has advantage 0 but stays: it counts in weights and KL.
    assert [(t.advantage, t.trajectory, t.prompt) for t in turns] == [(0.5, 3, 1), (0.0, 4, 1), (-0.5, 5, 1)]
    assert count(turns) == Totals(tokens=6, turns=3, trajectories=3, prompts=1)


def test_an_unknown_reward_trains_nothing_and_changes_no_other() -> None:
    turns = training_turns([group((1, [turn()]), (None, [turn()]), (0, [turn()]))], DR_GRPO)
    assert [(t.advantage, t.trajectory) for t in turns] == [(0.5, 0), (-0.5, 2)]
    assert training_turns([group((None, [turn()]), (1, [turn()]))], DR_GRPO) == []


def test_one_attempt_trains_nothing() -> None:
    assert training_turns([group((1, [turn()]))], GrpoOptions()) == []


def test_frozen_and_empty_turns_are_left_out() -> None:
    turns = training_turns(
        [group((1, [turn("judge", trainable=False), turn(reply=()), turn("update")]), (0, [turn()]))], DR_GRPO
    )
    assert [t.step for t in turns] == ["update", "answer"]


def test_masking_truncated_turns_leaves_the_rest_of_their_trajectory() -> None:
    attempts = group((1, [turn("update", stop="length"), turn()]), (0, [turn()]))
    kept = training_turns([attempts], DR_GRPO)
    assert [(t.step, t.truncated) for t in kept] == [("update", True), ("answer", False), ("answer", False)]
    masked = training_turns([attempts], GrpoOptions(normalize="none", loss=LossOptions(mask_truncated=True)))
    assert [(t.step, t.advantage) for t in masked] == [("answer", 0.5), ("answer", -0.5)]


def test_the_batch_deviation_is_that_of_all_processes() -> None:
    groups = [group((1, [turn()]), (0, [turn()]))]
    options = GrpoOptions(normalize="batch_std", advantage_epsilon=0.0)
    assert step_rewards(groups) == {"answer": [1, 0]}
    # Alone the deviation is .707107; with another process's two rewards of 1 it is 1/2.
    assert [t.advantage for t in training_turns(groups, options)] == pytest.approx([0.707107, -0.707107], abs=1e-6)
    merged = training_turns(groups, options, {"answer": [1, 0, 1, 1]})
    assert [t.advantage for t in merged] == [1.0, -1.0]


# Trajectory 0 of prompt 0 has turns of 2 and 4 tokens, trajectory 1 of prompt 0 one of 3, trajectory 2 of prompt 1
# one of 1: 10 tokens, 4 turns, 3 trajectories, 2 prompts.
FOUR = [plain(2, 0, 0), plain(4, 0, 0), plain(3, 1, 0), plain(1, 2, 1)]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("token", [1 / 10] * 4),
        ("turn", [1 / 8, 1 / 16, 1 / 12, 1 / 4]),
        ("trajectory", [1 / 18, 1 / 18, 1 / 9, 1 / 3]),
        ("prompt", [1 / 18, 1 / 18, 1 / 18, 1 / 2]),
        ("constant", [1 / 40] * 4),
    ],
)
def test_every_weighting_gives_the_weights_counted_by_hand(weighting: str, expected: list[float]) -> None:
    options = LossOptions(weighting=weighting, constant_length=10)
    weights = token_weights(FOUR, options)
    assert weights == pytest.approx(expected, rel=1e-12)
    if weighting != "constant":
        assert sum(w * len(t.reply_ids) for w, t in zip(weights, FOUR, strict=True)) == pytest.approx(1)


def test_what_weighs_a_trajectory_decides_which_way_unequal_ones_pull() -> None:
    # X (A = 1) has turns of 2 and 4 tokens, Y (A = -1) one of 3; on-policy the loss of a token is -A.
    turns = [plain(2, 0), plain(4, 0), plain(3, 1)]
    signs = [1, 1, -1]
    for weighting, expected in (("token", -1 / 3), ("turn", -1 / 3), ("trajectory", 0)):
        weights = token_weights(turns, LossOptions(weighting=weighting))
        loss = sum(-a * w * len(t.reply_ids) for a, w, t in zip(signs, weights, turns, strict=True))
        assert loss == pytest.approx(expected, abs=1e-12)


def test_weights_of_two_processes_are_those_of_one() -> None:
    totals = count(FOUR)
    for weighting in ("token", "turn", "trajectory", "prompt", "constant"):
        options = LossOptions(weighting=weighting, constant_length=10)
        split = token_weights(FOUR[:3], options, totals) + token_weights(FOUR[3:], options, totals)
        assert split == token_weights(FOUR, options)


def test_a_batch_holds_replies_alone_padded_on_the_right() -> None:
    turns = [
        TrainingTurn((1, 2), (3, 4, 5), 0.5, 0, 0, "a", sampler_logprobs=(-0.25, -0.5, -1), old_logprobs=(-1, -2, -3)),
        TrainingTurn((6,), (7,), -0.5, 1, 0, "a", sampler_logprobs=(-0.125,), old_logprobs=(-4,)),
    ]
    batch = collate(turns, [0.25, 0.75], lay_out(turns, "shared", 9))
    assert batch.reply_ids.tolist() == [[3, 4, 5], [7, 0, 0]]
    inputs = batch.inputs
    assert inputs.mask.tolist() == [[True, True, True], [True, False, False]]
    assert inputs.advantages.tolist() == [0.5, -0.5]
    assert batch.weights.tolist() == [0.25, 0.75]
    assert inputs.sampler_logprobs is not None and inputs.old_logprobs is not None
    assert inputs.sampler_logprobs.tolist() == [[-0.25, -0.5, -1], [-0.125, 0, 0]]
    assert inputs.old_logprobs.tolist() == [[-1, -2, -3], [-4, 0, 0]]
    assert inputs.reference_logprobs is None


def test_a_batch_with_logprobs_of_some_turns_only_is_refused() -> None:
    scored = TrainingTurn((1,), (2,), 1.0, 0, 0, "a", old_logprobs=(-1.0,))
    with pytest.raises(ValueError, match="1 of 2 turns"):
        collate([scored, plain(1)], [1.0, 1.0], lay_out([scored, plain(1)], "shared", 0))


def test_a_turn_refuses_logprobs_that_do_not_fit_its_reply() -> None:
    with pytest.raises(ValueError, match="2 reply ids but 1 old_logprobs"):
        TrainingTurn((1,), (2, 3), 1.0, 0, 0, "a", old_logprobs=(-1.0,))
    with pytest.raises(ValueError, match="needs prompt and reply tokens"):
        TrainingTurn((1,), (), 1.0, 0, 0, "a")
