"""Which groups make an optimizer step: the same with any number of processes, without variance, and carried over."""

import json
import math
from dataclasses import fields

import pytest
import torch
from test_grpo import SilentRun, weights_of

from memfactory.config import load_config
from memfactory.config.grpo import GrpoOptions
from memfactory.environment import process_rank
from memfactory.envs.rewards.base import RewardFunction
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.policy.batch import count, token_weights, training_turns
from memfactory.registry import REWARDS
from memfactory.trainers.carried import group_from_json, group_json
from memfactory.trainers.checkpoint import checkpoints
from memfactory.types import (
    BankTrace,
    Event,
    Group,
    MemoryItem,
    Message,
    Reading,
    Reply,
    Reward,
    Task,
    Tokens,
    Trajectory,
    Turn,
)
from processes import in_processes
from small_trainer import grpo_trainer

CONFIG = """
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 4, answer_tokens: 4}}
env: {{name: longcontext, rewards: {{{reward}: 1.0}}}}
data: {{train: rows.jsonl}}
train:
  name: grpo
  steps: 2
  prompts_per_step: 6
  group_size: 4
  eval_at_start: false
  optimizer: {{learning_rate: 1.0e-2, epsilon: 1.0e-2}}
trackers: []
"""


def number(episode):
    return int(episode.task.question.split()[-1])


@REWARDS.register("test_two_of_three")
class TwoOfThree(RewardFunction):
    """Attempt number mod 2, but 1 for each attempt at every third task."""

    def score(self, episodes):
        return [float(e.index % 2) if number(e) % 3 else 1.0 for e in episodes]


@REWARDS.register("test_unknown_step")
class NobodyKnows(RewardFunction):
    """Unknown."""

    def score(self, episodes):
        return [None] * len(episodes)


@pytest.fixture
def make(tmp_path, small_model_path):
    rows = [{"context": f"Fact {n}.", "input": f"What is {n}", "answers": ["x"], "index": n} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=small_model_path, reward="test_two_of_three"))

    def trainer(*overrides, folder="run"):
        resolved = load_config(tmp_path / "run.yaml", overrides, command="train")
        run = SilentRun(tmp_path / folder)
        run.main = process_rank() == 0
        return grpo_trainer(resolved, run)

    return trainer


def places(groups):
    return [group.place for group in groups]


@pytest.mark.slow
def test_any_number_of_processes_takes_the_same_optimizer_steps(make, tmp_path):
    """Of six tasks four vary: three parts of one or two prompts each, so three updates in each of two steps."""
    words = ["train.minibatches=3", "train.rollout_prompts=1", "data.shuffle=false", "train.loss.kl_coef=0.1"]

    def train(rank, of):
        trainer = make(*words, folder=f"run-{of}")
        trainer.train()
        torch.save((trainer.trained.changes, weights_of(trainer)), tmp_path / f"{rank}-of-{of}.pt")
        return 0

    train(0, 1)
    updates, expected = torch.load(tmp_path / "0-of-1.pt")
    assert updates == 6
    for processes in (2, 3):
        codes = in_processes(processes, lambda rank, of=processes: train(rank, of), tmp_path)
        assert codes == [0] * processes, (tmp_path / "rank-0.txt").read_text()
        for rank in range(processes):
            changes, weights = torch.load(tmp_path / f"{rank}-of-{processes}.pt")
            assert changes == updates
            assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(expected, weights, strict=True))


def test_tasks_that_are_rolled_out_one_by_one_go_to_all_processes_in_turn(make):
    trainer = make()
    for index, expected in ((0, [0, 2, 4]), (1, [1, 3, 5])):
        trainer.trained.accelerator = type("Two", (), {"process_index": index, "num_processes": 2})
        assert [place for place in range(6) if trainer.is_own(place)] == expected


def turn(step="answer"):
    reply = Reply("x", "stop", Tokens((1, 2), (3, 4), (-1.0, -1.0)))
    return Turn(step, (Message("user", "q"),), reply, trainable=True)


def group(rewards, place=None, steps=None):
    given = [Trajectory(n, (turn(),), "x", Reward(value, steps=steps or {})) for n, value in enumerate(rewards)]
    return Group(Task("t", "q", ("a",)), tuple(given), place)


def test_groups_without_variance_count_only_where_that_is_wanted():
    groups = [group([1.0, 0.0]), group([1.0, 1.0]), group([None, None])]
    plain, counted = GrpoOptions(normalize="none"), GrpoOptions(normalize="none", count_zero_variance=True)
    assert [t.advantage for t in training_turns(groups, plain)] == [0.5, -0.5]
    turns = training_turns(groups, counted)
    assert [t.advantage for t in turns] == [0.5, -0.5, 0.0, 0.0]
    # Four turns of two tokens: each token weighs 1/8, not 1/4; unknown rewards still train nothing.
    assert count(turns).prompts == 2 and token_weights(turns, counted.loss) == [1 / 8] * 4


def test_the_published_settings_of_memagent_count_groups_without_variance(tmp_path):
    (tmp_path / "run.yaml").write_text("model: tiny\nagent: memory_agent\nenv: longcontext\ntrain: grpo_memagent\n")
    options = load_config(tmp_path / "run.yaml").config.train.options
    assert options.count_zero_variance and not GrpoOptions().count_zero_variance


# Rewards that nobody knows


def test_unknown_rewards_of_a_step_stop_the_run_before_anything_is_trained(make):
    rewards = "env.rewards={test_two_of_three: 1.0, test_unknown_step: 0.0}"
    trainer = make(rewards, "env.steps={update: {test_unknown_step: 1.0}}")
    before = weights_of(trainer)
    with pytest.raises(MemFactoryError, match="24 of 24 rewards that credit the module step 'update' are unknown"):
        trainer.train()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.trained.trained, strict=True))


def test_unknown_rewards_are_counted_by_what_they_credit(make):
    rewards = "env.rewards={test_two_of_three: 1.0, test_unknown_step: 0.0}"
    steps = "env.steps={update: {test_unknown_step: 1.0}}"
    trainer = make(rewards, steps, "train.max_unknown_fraction=1", "train.steps=1")
    trainer.train()
    (row,) = trainer.run.logged
    assert (row["unknown/update"], row["unknown/test_unknown_step"], row["groups/unknown"]) == (1.0, 1.0, 0.0)
    assert "unknown/test_two_of_three" not in row


# Groups that wait for the next step

CARRYING = ["train.require_variance=true", "train.carry_groups=true", "train.prompts_per_step=3", "data.shuffle=false"]


def test_rollouts_keep_their_size_and_what_is_too_much_waits(make):
    trainer = make(*CARRYING, "train.rollout_prompts=5")
    groups, cursor = trainer.collect(1)
    # Of the tasks 0 to 4 all but 0 and 3 vary: three. Nothing is left over.
    assert (places(groups), cursor) == ([0, 1, 2, 3, 4], 5)
    trainer = make(*CARRYING, "train.rollout_prompts=9")
    trainer.train()
    # Of 0 to 8 six vary: three train in the first step, and three wait for the second, which rolls out nothing.
    first, second = trainer.run.logged
    assert (first["groups/valid"], second["groups/valid"], trainer.state.cursor) == (3, 3, 9)
    assert second["groups"] == 3 and trainer.carried == ()


def test_groups_that_waited_train_by_the_ratio_to_the_policy_that_sampled_them(make):
    trainer = make(*CARRYING, "train.rollout_prompts=9")
    trainer.train()
    first, second = trainer.run.logged
    assert first["ratio/mean"] == 1.0
    assert second["ratio/max"] != 1.0 and math.isfinite(second["ratio/max"])


def test_a_run_that_is_resumed_goes_on_with_the_groups_that_waited(make):
    words = [*CARRYING, "train.rollout_prompts=7", "train.steps=4", "train.save_every=1", "train.keep_checkpoints=9"]
    whole = make(*words, folder="whole")
    whole.train()
    kept = checkpoints(whole.run.folder / "checkpoints")
    assert any((path / "carried.json").is_file() for path in kept)
    for path in kept[:3]:
        resumed = make(*words, folder=f"from-{path.name}")
        resumed.resume(path)
        resumed.train()
        assert all(torch.equal(a, b) for a, b in zip(weights_of(whole), weights_of(resumed), strict=True))


def test_a_group_that_waits_is_read_back_as_it_was():
    reward = Reward(0.1, {"em": 0.1, "judge": None}, {"answer": None})
    frozen = Turn("read", (), Reply("y", "length"), trainable=False, lengths=(3, 1), engine="reader")
    item = MemoryItem("m1", "k", "v", tags=("a", "b"), created_at="noon", version=2)
    trace = BankTrace((item,), ((None, Event(None, item)), (1, Event(item, None))), ("m1",), None)
    failed = {"failure": "a failure", "overlong": True}
    whole = Trajectory(1, (turn(), frozen), "x", reward, **failed, reading=Reading(5, 2), bank=trace)
    first = Group(Task("t", "q", ("a",)), (whole, group([0.5]).trajectories[0]), 7)
    read = group_from_json(json.loads(json.dumps(group_json(first))), lambda place: first.task)
    assert read == first
    # No field is forgotten: each of them differs from its default above.
    assert all(getattr(whole, each.name) != each.default for each in fields(Trajectory))


def test_carrying_groups_without_required_variance_is_refused(make):
    with pytest.raises(ConfigError, match="carry_groups needs require_variance: true"):
        make("train.carry_groups=true")
