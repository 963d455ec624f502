"""What a run owes after it was stopped, and what only shows with several processes, stages, engines or epochs."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch

from memfactory.config import load_config
from memfactory.config.grpo import GrpoOptions
from memfactory.engines.hf.engine import HfEngine
from memfactory.envs.rewards.base import RewardFunction
from memfactory.errors import MemFactoryError
from memfactory.files.checkpoints import checkpoints
from memfactory.plan.plan import make_plan
from memfactory.registry import REWARDS
from memfactory.trainers.base import Interrupted
from memfactory.trainers.checkpoint import TrainState, save_checkpoint
from small_policy import small_policy, some_turns
from small_trainer import grpo_trainer
from vowels import vowels_plugin

CONFIG = """
{plugins}
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 4, answer_tokens: 6}}
env: {{name: longcontext, rewards: {{{reward}: 1.0}}}}
data: {{train: rows.jsonl, eval: {{held: rows.jsonl}}}}
train:
  name: grpo
  steps: 3
  prompts_per_step: 2
  group_size: 4
  save_every: 0
  eval_every: 2
  optimizer: {{learning_rate: 1.0e-2}}
eval: {{samples: 2, limit: 2, metrics: [{reward}]}}
trackers: []
"""
STILL_CLOCK = """
import os
from types import SimpleNamespace


if os.environ.get("RANK") == "1":
    # The second process has a clock that stands still, so a save is never due there.
    from memfactory.trainers import base

    base.time = SimpleNamespace(monotonic=lambda: 0.0)
"""


@REWARDS.register("review_member")
class Member(RewardFunction):
    """Attempt number mod 2."""

    def score(self, episodes):
        return [float(e.index % 2) for e in episodes]


class StoppingRun:
    """A run that is asked to stop while it evaluates after step `evaluating`, or once step `done` is done."""

    main = True

    def __init__(self, folder, evaluating=None, done=None):
        self.folder = folder
        self.evaluating, self.done = evaluating, done
        self.evaluated, self.steps = [], 0
        self.asked = False

    def log(self, step, metrics):
        self.steps = step
        self.asked = self.asked or step == self.done

    def evaluate(self, step):
        self.asked = self.asked or step == self.evaluating
        self.check()
        self.evaluated.append(step)

    def status(self, text):
        pass

    def save_agent(self, folder):
        pass

    def check(self):
        if self.asked:
            raise Interrupted(str(self.folder))


@pytest.fixture
def work(tmp_path, small_model_path):
    rows = [{"context": f"Fact {n}.", "input": f"What is {n}", "answers": ["x"]} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "letters.py").write_text(vowels_plugin("review_vowels") + STILL_CLOCK)
    for name, reward, plugins in (("run", "review_member", ""), ("process", "review_vowels", "plugins: [letters.py]")):
        text = CONFIG.format(model=small_model_path, reward=reward, plugins=plugins)
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture
def make(work):
    def trainer(run, *overrides):
        resolved = load_config(work / "run.yaml", overrides, command="train")
        return grpo_trainer(resolved, run)

    return trainer


def test_a_task_that_comes_again_within_a_step_is_attempted_anew(make, work):
    trainer = make(StoppingRun(work / "run"), "train.prompts_per_step=8")
    groups, _ = trainer.collect(1)
    sampled = {}
    for group in groups:
        ids = tuple(turn.reply.tokens.reply_ids for each in group.trajectories for turn in each.turns)
        sampled.setdefault(group.task.id, []).append(ids)
    # Eight groups of four tasks: each task twice.
    assert [len(set(attempts)) for attempts in sampled.values()] == [2, 2, 2, 2]


@REWARDS.register("review_unknown")
class OneUnknown(RewardFunction):
    """Of the task with number 0 the second attempt's reward is unknown."""

    def score(self, episodes):
        return [None if e.index == 1 and e.task.question.endswith("0") else float(e.index % 2) for e in episodes]


def test_the_share_of_unknown_rewards_is_one_of_the_step_not_of_a_part_that_is_rolled_out_together(make, work):
    words = ["env.rewards={review_unknown: 1.0}", "train.prompts_per_step=4", "train.rollout_prompts=1"]
    trainer = make(StoppingRun(work / "run"), *words, "train.max_unknown_fraction=0.1")
    groups, _ = trainer.collect(1)
    # 1 of 16 rewards of the step, though 1 of 4 of one of its parts.
    assert len(groups) == 4
    strict = make(StoppingRun(work / "run"), *words, "train.max_unknown_fraction=0.05")
    with pytest.raises(MemFactoryError, match="1 of 16 rewards are unknown"):
        strict.collect(1)


class CopyEngine(HfEngine):
    """Stands in for an engine with its own copy of the weights: it notes what it is handed."""

    events: list

    def update_weights(self, weights):
        self.events.append({name: value.clone() for name, value in weights.whole()})

    def sleep(self):
        self.events.append("sleep")


def test_an_engine_with_its_own_weights_gets_the_policys_after_every_step(make, work):
    trainer = make(StoppingRun(work / "run"), "train.steps=2")
    engine = trainer.runtime.engines["policy"]
    engine.__class__, engine.events = CopyEngine, []
    trainer.train()
    # What it begins with is the policy's too: random weights are not the same twice.
    assert [event == "sleep" for event in engine.events] == [False, True, False, True, False]
    first, last = engine.events[0], engine.events[-1]
    for name, parameter in trainer.trained.model.named_parameters():
        assert torch.equal(last[name], parameter)
    assert any(not torch.equal(first[name], last[name]) for name in last)


@pytest.mark.parametrize(("stopped", "owed"), [(2, [2, 3]), (3, [3])])
def test_an_evaluation_that_was_interrupted_is_made_up_for_on_resume(make, work, stopped, owed):
    trainer = make(StoppingRun(work / "run", evaluating=stopped))
    with pytest.raises(Interrupted):
        trainer.train()
    (saved,) = checkpoints(work / "run" / "checkpoints")
    assert saved.name == f"step-{stopped}"
    again = make(StoppingRun(work / "run"))
    again.resume(saved)
    again.train()
    assert again.run.evaluated == owed


def test_a_run_stopped_before_its_first_step_saves_nothing(make, work):
    trainer = make(StoppingRun(work / "run", evaluating=0))
    with pytest.raises(Interrupted):
        trainer.train()
    assert not (work / "run").exists()


def test_a_stop_right_after_a_save_leaves_that_checkpoint_alone(make, work):
    trainer = make(StoppingRun(work / "run", done=2), "train.save_every=1", "train.eval_every=0")
    written = []
    save = trainer.trained.save_masters
    trainer.trained.save_masters = lambda folder: (written.append(folder.name), save(folder))
    with pytest.raises(Interrupted):
        trainer.train()
    assert written == [".step-1.partial", ".step-2.partial"]


@pytest.mark.parametrize(("update", "saved"), [(3, ["step-1"]), (4, [])])
def test_an_error_between_the_updates_of_a_step_saves_no_half_step(make, work, update, saved):
    trainer = make(StoppingRun(work / "run"), "train.minibatches=2")
    taken = []
    train = trainer.trained.update

    def failing(turns):
        taken.append(len(turns))
        if len(taken) == update:
            raise MemFactoryError("one conversation alone does not fit into memory")
        return train(turns)

    trainer.trained.update = failing
    # Two updates a step: the third is the second step's first, before which all steps are whole.
    with pytest.raises(MemFactoryError, match="alone"):
        trainer.train()
    assert [path.name for path in checkpoints(work / "run" / "checkpoints")] == saved


def test_going_on_from_an_older_checkpoint_drops_the_later_ones_it_leaves_behind(tmp_path):
    def save(step):
        save_checkpoint(tmp_path, TrainState(step=step), save_weights=lambda _: None, optimizer={}, keep=2)

    for step in (4, 6):
        save(step)
    save(5)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-4", "step-5"]


def test_a_new_optimizer_lets_the_old_ones_state_go(small_model_path):
    policy = small_policy(small_model_path)
    old = weakref.ref(policy.optimizer)
    policy.set_optimizer(policy.options.optimizer, 5)
    assert old() is None


def test_an_optimizer_state_that_does_not_fit_is_told_with_what_to_do(small_model_path):
    policy = small_policy(small_model_path)

    def step():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB.\nmore")

    policy.optimizer.step = step
    with pytest.raises(MemFactoryError, match=r"optimizer's state .* Tried to allocate 16 GiB\.\).*adamw_8bit"):
        policy.update(some_turns())


def test_the_plan_of_an_adapter_that_goes_on_training_is_one_of_adapters(work, small_model_path):
    adapter = work / "adapter"
    small_policy(small_model_path, lora={"rank": 4}).save_pretrained(adapter)
    plans = [
        make_plan(load_config(work / "run.yaml", words, command="train"))
        for words in (["train.lora={rank: 4}"], [f"model.adapter={adapter}"], [f"model.path={adapter}"])
    ]
    assert plans[1].memory == plans[0].memory
    assert plans[2].memory == plans[0].memory


def test_the_schedule_ends_with_the_run_however_it_ends():
    groups = {"prompts_per_step": 24, "require_variance": True}
    assert GrpoOptions(steps=50, valid_groups=250, **groups).planned_updates == 11
    # The steps run out first.
    assert GrpoOptions(steps=10, valid_groups=250, **groups).planned_updates == 10
    # Groups without variance count towards a step, so nobody knows when 250 others have come.
    assert GrpoOptions(steps=50, valid_groups=250, prompts_per_step=24).planned_updates == 50


def torchrun(work, *words):
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "memfactory", "train"]
    return subprocess.Popen(
        [sys.executable, *module, "process.yaml", "train.prompts_per_step=4", *words],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return output


def rewards(folder):
    return [json.loads(line)["reward"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_stop_together_on_ctrl_c_and_go_on_as_if_nothing_had_happened(work):
    words = ["train.steps=6", "train.save_seconds=0.001"]
    whole = torchrun(work, "--output", "whole", *words)
    output = finish(whole)
    assert whole.returncode == 0, output
    stopped = torchrun(work, "--output", "stopped", *words)
    while not (work / "stopped" / "transcripts" / "step-000003.jsonl").exists():
        assert stopped.poll() is None, stopped.communicate()[0]
        time.sleep(0.002)
    os.killpg(stopped.pid, signal.SIGINT)
    output = finish(stopped)
    assert "Stopped; the last whole step is saved" in output
    assert len(rewards(work / "stopped")) in (2, 3)
    resumed = torchrun(work, "--output", "stopped", "--resume", "auto", *words)
    output = finish(resumed)
    assert resumed.returncode == 0, output
    assert rewards(work / "stopped") == rewards(work / "whole")
    steps = [entry["step"] for entry in json.loads((work / "stopped" / "eval.json").read_text())["evaluations"]]
    assert steps == [0, 2, 4, 6]
