"""A trainer from a user's file, with options, loss and temperature of its own, from the list to a resumed run."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.plan.plan import make_plan
from memfactory.training import run_training

PLUGIN = '''
from collections.abc import Iterator
from dataclasses import replace

from pydantic import Field

from memfactory.config.losses import LossOptions
from memfactory.config.objectives import ObjectiveOptions
from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.training import TrainerOptions
from memfactory.plan.work import Forecast, Work
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.objectives.base import Objective, Parts, Terms, nowhere
from memfactory.registry import OBJECTIVES, TRAINERS
from memfactory.rollout import rollout
from memfactory.seeds import stream_seed
from memfactory.trainers.base import Trainer
from memfactory.trainers.checkpoint import TrainState
from memfactory.types import Group


class FocalOptions(ObjectiveOptions):
    """Options of `focal`."""

    gamma: float = Field(1.0, ge=0)
    """Larger values train less on tokens that are probable already."""


@OBJECTIVES.register("focal")
class Focal(Objective):
    """-(1 - pi)^gamma log pi (arXiv 1708.02002), for turns with advantage 1."""

    Options = FocalOptions

    def parts(self, terms: Terms) -> Parts:
        weight = (1 - terms.logprobs.detach().exp()) ** self.options.gamma
        ratio = terms.log_ratio.detach().exp()
        return Parts(-weight * terms.advantages * terms.logprobs, ratio, *nowhere(ratio))


class BestOfOptions(TrainerOptions):
    """Options of `best_of`: those of every trainer of the language model, and these."""

    tasks_per_step: int = Field(2, ge=1)
    """Tasks of one optimizer step."""
    samples: int = Field(4, ge=2)
    """Episodes of each task, of which the best is trained on."""
    temperature: float = Field(0.7, gt=0)
    """Sampling temperature; the log-probabilities in the loss use the same."""
    loss: LossOptions = LossOptions(objective={"name": "focal", "gamma": 1.0})
    """The loss of the policy."""

    def check(self, config: RunConfig, problems: Problems) -> list[str]:
        warnings = super().check(config, problems)
        if self.tasks_per_step * self.samples > 1024:
            problems.add(("train", "samples"), "more than 1,024 episodes in one optimizer step")
        if self.temperature > 1:
            warnings.append("train.temperature: above 1 the best episodes get worse")
        return warnings


@TRAINERS.register("best_of")
class BestOf(Trainer[BestOfOptions]):
    """Trains on the best of several episodes of each task."""

    @classmethod
    def plan(cls, options: BestOfOptions, forecast: Forecast) -> Work:
        episodes = f"{options.tasks_per_step} x {options.samples}"
        return forecast.played(options.steps, ("episodes per step", episodes))

    def step(self, step: int) -> tuple[TrainState, dict[str, float]]:
        options, cursor = self.options, self.state.cursor
        positions = range(cursor, cursor + options.tasks_per_step)
        groups = rollout(
            self.runtime.sampler(options.sampling),
            self.runtime.env,
            [self.tasks.at(position) for position in positions],
            group_size=options.samples,
            seeds=[stream_seed(self.runtime.seed, "best_of", position) for position in positions],
        )
        self.sleep_engines()
        turns = [turn for number, group in enumerate(groups) for turn in best_turns(number, group)]
        measured = self.trained.update(turns)
        return replace(self.state, step=step, cursor=cursor + len(groups)), measured


def best_turns(number: int, group: Group) -> Iterator[TrainingTurn]:
    """The policy's turns of the best trajectory whose reward is known."""
    known = [one for one in group.trajectories if one.reward.total is not None]
    best = max(known, key=lambda one: one.reward.total or 0.0, default=None)
    for turn in best.turns if best is not None else ():
        tokens = turn.reply.tokens
        if turn.trainable and tokens is not None and tokens.reply_ids:
            yield TrainingTurn(
                tokens.prompt_ids,
                tokens.reply_ids,
                advantage=1.0,
                trajectory=number,
                prompt=number,
                step=turn.step,
                sampler_logprobs=tokens.logprobs,
            )
'''
CONFIG = """
plugins: [my_trainer.py]
model: {path: tiny, cpu_threads: 1}
agent: {name: memory_agent, chunk_tokens: 512, memory_tokens: 8, answer_tokens: 8}
env: {name: longcontext, rewards: {boxed_em: 1.0}}
data: {train: {name: facts, rows: 6}}
train:
  name: best_of
  steps: 2
  samples: 2
  eval_at_start: false
  eval_at_end: false
  optimizer: {learning_rate: 1.0e-3}
trackers: []
"""


@pytest.fixture
def load(tmp_path, monkeypatch, own_components):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMFACTORY_TRUSTED", str(tmp_path / "trusted.json"))
    # A file of the same contents is imported once in a process, and `own_components` forgets its components.
    Path("my_trainer.py").write_text(f"{PLUGIN}# {tmp_path}\n")
    Path("run.yaml").write_text(CONFIG)
    return lambda *overrides: load_config("run.yaml", overrides, command="train")


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_a_plugin_trainer_is_listed_with_its_options(load, capsys):
    assert run(["list", "trainers", "--verbose", "--config", "run.yaml"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert "best_of Trains on the best of several episodes of each task." in listed
    assert "Episodes of each task, of which the best is trained on." in listed


def test_a_plugin_trainers_own_checks_refuse_and_warn(load):
    with pytest.raises(ConfigError, match=r"run.yaml:10: train.samples: more than 1,024 episodes"):
        Path("run.yaml").write_text(CONFIG.replace("samples: 2", "samples: 1000"))
        load()
    Path("run.yaml").write_text(CONFIG)
    assert "train.temperature: above 1 the best episodes get worse" in load("train.temperature=2").warnings
    with pytest.raises(ConfigError, match=r"train\.loss\.objective\.gamma"):
        load("train.loss.objective={name: focal, gamma: -1}")


def test_a_plugin_trainer_plans_its_own_work_and_the_memory_of_its_loss(load):
    plan = make_plan(load("train.loss.kl_coef=0.1", "model.device=cpu"))
    work = dict(plan.work)
    assert (work["trainer"], work["optimizer steps"], work["episodes per step"]) == ("best_of", "2", "2 x 2")
    assert work["trained steps of modules"] == "update, answer"
    # Its KL term needs a reference: a frozen copy in float32, as large as the weights.
    assert plan.memory["reference"] == plan.memory["weights"] > 0


def test_a_plugin_trainer_samples_and_scores_at_its_temperature(load):
    folders = {t: run_training(load("train.steps=1", f"train.temperature={t}", f"output=at-{t}")) for t in (0.2, 1.5)}
    (cold,), (hot,) = (metrics(folder) for folder in folders.values())
    # The engine's log-probabilities are at the temperature that samples, the trainer's at the one that trains.
    assert cold["sampler_difference/max"] < 1e-3 and hot["sampler_difference/max"] < 1e-3
    assert cold["entropy"] < 0.5 * hot["entropy"]
    # (1 - p) < 1 weighs every token of the focal loss, and the negative log-likelihood not at all.
    plain = run_training(load("train.steps=1", "train.temperature=1.5", "train.loss.objective=reinforce", "output=nll"))
    assert metrics(plain)[0]["loss"] > hot["loss"] > 0


def test_a_plugin_trainer_resumes_bit_identical(load):
    run_training(load("output=whole"))
    part = run_training(load("output=part", "train.steps=1"))
    run_training(load("output=part"), resume="auto")
    assert metrics(part) == metrics(Path("whole"))
    digests = [sha256(Path(name, "final", "model.safetensors").read_bytes()).digest() for name in ("whole", "part")]
    assert digests[0] == digests[1]
