"""The GRPO loop on a small random model: which tasks it takes, when it stops, and that it learns."""

import json

import pytest
import torch

from memfactory.config import load_config
from memfactory.envs.rewards.base import RewardFunction
from memfactory.errors import MemFactoryError
from memfactory.registry import REWARDS
from memfactory.trainers.grpo import gathered_metrics
from memfactory.types import Group, Reply, Reward, Task, Trajectory, Turn
from small_trainer import grpo_trainer

CONFIG = """
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 4, answer_tokens: 6}}
env: {{name: longcontext, rewards: {{{reward}: 1.0}}}}
data: {{train: rows.jsonl}}
train:
  name: grpo
  steps: 3
  prompts_per_step: 2
  group_size: 4
  eval_at_start: false
  optimizer: {{learning_rate: 1.0e-2}}
trackers: []
"""


@REWARDS.register("test_letters")
class Letters(RewardFunction):
    """The share of the answer's characters that are lower-case letters."""

    def score(self, episodes):
        return [sum(c.islower() for c in e.answer or "") / max(len(e.answer or ""), 1) for e in episodes]


@REWARDS.register("test_odd_only")
class OddOnly(RewardFunction):
    """Attempt number mod 2 for tasks with an odd number in the question, 1 for the others."""

    def score(self, episodes):
        return [float(e.index % 2) if int(e.task.question.split()[-1]) % 2 else 1.0 for e in episodes]


@REWARDS.register("test_constant")
class Constant(RewardFunction):
    """Always the same."""

    def score(self, episodes):
        return [0.5] * len(episodes)


@REWARDS.register("test_judge_down")
class JudgeDown(RewardFunction):
    """Half of the rewards are unknown."""

    def score(self, episodes):
        return [None if index % 2 else float(index % 4 == 0) for index in range(len(episodes))]


class SilentRun:
    """A run without a display, a tracker or a held-out set."""

    main = True

    def __init__(self, folder):
        self.folder = folder
        self.logged = []

    def log(self, step, metrics):
        self.logged.append({"step": step, **metrics})

    def evaluate(self, step):
        pass

    def status(self, text):
        pass

    def save_agent(self, folder):
        pass

    def check(self):
        pass


@pytest.fixture
def make(tmp_path, small_model_path):
    rows = [{"context": f"Fact {n}.", "input": f"What is {n}", "answers": ["x"], "index": n} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def trainer(reward, *overrides):
        (tmp_path / "run.yaml").write_text(CONFIG.format(model=small_model_path, reward=reward))
        resolved = load_config(tmp_path / "run.yaml", overrides, command="train")
        return grpo_trainer(resolved, SilentRun(tmp_path / "run"))

    return trainer


def weights_of(trainer):
    return [parameter.detach().clone() for parameter in trainer.trained.trained]


def test_an_epoch_has_every_task_once_and_each_epoch_its_own_order(make):
    trainer = make("test_letters")
    epochs = [[task.id for task in trainer.tasks.upcoming(start, 6)] for start in (0, 6, 12)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(task.id for task in trainer.tasks)] * 3
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    across = [task.id for task in trainer.tasks.upcoming(4, 4)]
    assert across == epochs[0][4:] + epochs[1][:2]


def test_training_raises_a_reward_that_can_be_learnt(make):
    trainer = make("test_letters", "train.steps=12", "train.prompts_per_step=3", "train.group_size=8")
    trainer.train()
    rewards = [row["reward"] for row in trainer.run.logged]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    assert max(row["sampler_difference/max"] for row in trainer.run.logged) < 1e-4


def test_with_require_variance_tasks_are_rolled_out_until_enough_groups_differ(make):
    trainer = make("test_odd_only", "train.require_variance=true", "train.prompts_per_step=3")
    groups, cursor = trainer.collect(1)
    numbers = [int(group.task.question.split()[-1]) for group in groups]
    assert sum(number % 2 for number in numbers) == 3
    assert cursor == len(numbers) <= 6
    assert sorted(numbers) == sorted(int(task.question.split()[-1]) for task in trainer.tasks.upcoming(0, cursor))


def test_valid_groups_end_the_run_and_cut_the_last_step_to_fit(make):
    trainer = make("test_odd_only", "train.require_variance=true", "train.valid_groups=5", "train.steps=50")
    trainer.train()
    assert [row["groups/valid"] for row in trainer.run.logged] == [2, 2, 1]
    assert trainer.state.valid_groups == 5


def test_rewards_that_never_differ_stop_the_run_when_variance_is_required(make):
    trainer = make("test_constant", "train.require_variance=true", "train.max_rollouts_per_step=3")
    with pytest.raises(MemFactoryError, match="gave no group whose rewards differ"):
        trainer.train()


def test_groups_without_variance_are_logged_and_train_nothing(make):
    trainer = make("test_constant", "train.steps=1")
    before = weights_of(trainer)
    trainer.train()
    (row,) = trainer.run.logged
    assert (row["reward"], row["groups/zero_variance"], row["groups/valid"]) == (0.5, 1.0, 0)
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.trained.trained, strict=True))


def test_a_step_in_which_only_an_api_spoke_is_logged_without_lengths():
    # A reranker is not asked where the bank is empty: then a frozen helper's answer is all that was said.
    said = Turn("answer", (), Reply("x", "stop"), trainable=False)
    metrics = gathered_metrics([Group(Task("t", "q", ("a",)), (Trajectory(0, (said,), "x", Reward(0.5)),))])
    assert metrics["reward"] == 0.5 and metrics["turns"] == metrics["tokens/sampled"] == 0
    assert "reply_tokens" not in metrics and "truncated" not in metrics


def test_a_judge_that_is_down_stops_the_run_before_anything_is_trained(make):
    trainer = make("test_judge_down")
    before = weights_of(trainer)
    with pytest.raises(MemFactoryError, match=r"4 of 8 rewards are unknown.*max_unknown_fraction = 0\.2"):
        trainer.train()
    assert trainer.run.logged == []
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.trained.trained, strict=True))


def test_a_run_that_an_error_stops_keeps_its_whole_steps(make, monkeypatch):
    trainer = make("test_letters", "train.save_every=0")
    whole = trainer.collect

    def fails_in_the_third(step):
        if step == 3:
            raise MemFactoryError("the judge failed")
        return whole(step)

    monkeypatch.setattr(trainer, "collect", fails_in_the_third)
    with pytest.raises(MemFactoryError, match="the judge failed"):
        trainer.train()
    assert [path.name for path in (trainer.run.folder / "checkpoints").iterdir()] == ["step-2"]


def test_unknown_rewards_below_the_limit_are_left_out_not_counted_as_zero(make):
    trainer = make("test_judge_down", "train.max_unknown_fraction=0.5", "train.steps=1")
    trainer.train()
    (row,) = trainer.run.logged
    # Of eight attempts the odd ones are unknown and the even ones have 1, 0, 1, 0.
    assert (row["reward"], row["groups/unknown"]) == (0.5, 0.5)
    # Two known trajectories in each of two groups, with three turns of at most 6 tokens each.
    assert 0 < row["tokens/trained"] <= 2 * 2 * (4 + 4 + 6)


def test_minibatches_split_the_prompts_of_a_rollout(make):
    trainer = make("test_letters", "train.minibatches=2", "train.prompts_per_step=4", "train.steps=1")
    trainer.train()
    (row,) = trainer.run.logged
    assert row["ratio/max"] != 1.0  # the second optimizer step meets weights that the first has moved
    # The second rollout, after the four tasks of the first.
    groups = [{turn.prompt for turn in part} for part in trainer.minibatches(_turns(trainer), step=1, epoch=0)]
    assert groups[0].isdisjoint(groups[1]) and groups[0] | groups[1] == {4, 5, 6, 7}


def _turns(trainer):
    from memfactory.policy.batch import training_turns

    groups, _ = trainer.collect(1)
    return training_turns(groups, trainer.options)


def test_transcripts_hold_the_ids_text_reward_and_advantage_of_whole_groups(make):
    trainer = make("test_letters", "train.steps=1", "train.transcripts_per_step=1")
    trainer.train()
    lines = (trainer.run.folder / "transcripts" / "step-000001.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    mean = sum(row["reward"]["total"] for row in rows) / 4
    for row in rows:
        assert [turn["step"] for turn in row["turns"]] == ["update", "answer"]
        above = row["reward"]["total"] - mean
        assert row["advantage"]["answer"] * above >= 0
