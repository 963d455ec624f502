"""A component of every registry from ONE user's file: listed, validated, planned, trained, evaluated and resumed."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.registry import ALL

PLUGIN = '''
from collections.abc import Sequence

from pydantic import Field

from memfactory.components import ModuleOptions, RewardOptions
from memfactory.config.objectives import EstimatorOptions, ObjectiveOptions
from memfactory.config.grpo import GrpoOptions
from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.dialogue import Agent, Ask
from memfactory.envs.base import Environment, EnvironmentOptions
from memfactory.envs.rewards.base import RewardFunction
from memfactory.policy.advantages.base import AdvantageEstimator
from memfactory.policy.objectives.base import Objective, Parts, nowhere
from memfactory.registry import ADVANTAGES, AGENTS, DATASETS, ENVS, MODULES, OBJECTIVES, REWARDS, TRAINERS
from memfactory.roles import Reader
from memfactory.trainers.grpo import GrpoTrainer
from memfactory.types import Message, Task


class SkimOptions(ModuleOptions):
    """Options of `every_module`."""

    answer_tokens: int = Field(6, ge=1)
    """The longest answer, in tokens."""


@MODULES.register("every_module")
class Skim(Reader[SkimOptions]):
    """Answers from the text at once."""

    steps = ("skim",)

    def dialogue(self, episode):
        prompt = f"{episode.task.context} {episode.task.question}"
        reply = yield Ask("skim", (Message("user", prompt),), self.options.answer_tokens)
        return self.answer(reply.text)


@AGENTS.register("every_agent")
class Skimmer(Agent):
    """Reads a text with one module."""

    slots = {"reader": "every_module"}

    def dialogue(self, episode):
        yield from self.modules["reader"].play(episode)


@DATASETS.register("every_dataset")
class Letters(Dataset[DatasetOptions]):
    """A question for each letter."""

    source = "letters"

    def rows(self) -> Sequence[Row]:
        letters = "abcdef"[: self.options.limit]
        return [Row({"letter": letter}, f"letter {letter}") for letter in letters]


@ENVS.register("every_environment")
class LetterTasks(Environment):
    """Asks for the letter of the row."""

    def task(self, row) -> Task:
        letter = str(row.values["letter"])
        return Task(id=row.source, question="Which letter?", answers=(letter,), context=f"The letter is {letter}.")


class LengthOptions(RewardOptions):
    """Options of `every_reward`."""

    scale: float = Field(0.1, gt=0)
    """Reward of one character."""


@REWARDS.register("every_reward")
class Length(RewardFunction[LengthOptions]):
    """Rewards long replies."""

    def score(self, episodes):
        return [self.options.scale * len(episode.turns[-1].reply.text) for episode in episodes]


class PlainOptions(ObjectiveOptions):
    """Options of `every_objective`."""


@OBJECTIVES.register("every_objective")
class Plain(Objective):
    """-r A, without a clip."""

    Options = PlainOptions

    def parts(self, terms) -> Parts:
        ratio = terms.log_ratio.exp()
        return Parts(-ratio * terms.advantages, ratio, *nowhere(ratio))


class CenteredOptions(EstimatorOptions):
    """Options of `every_estimator`."""


@ADVANTAGES.register("every_estimator")
class Centered(AdvantageEstimator):
    """The reward minus the mean of its group."""

    Options = CenteredOptions

    def advantages(self, given):
        mean = sum(given.rewards) / len(given.rewards)
        return [reward - mean for reward in given.rewards]


class MyGrpoOptions(GrpoOptions):
    """Options of `every_trainer`."""

    note: str = "none"
    """A word for the metrics."""


@TRAINERS.register("every_trainer")
class MyGrpo(GrpoTrainer):
    """GRPO with an option of its own."""

    Options = MyGrpoOptions
'''
NAMES = {
    "module": "every_module",
    "agent": "every_agent",
    "environment": "every_environment",
    "reward": "every_reward",
    "dataset": "every_dataset",
    "trainer": "every_trainer",
    "objective": "every_objective",
    "advantage estimator": "every_estimator",
}
CONFIG = """\
plugins: [every.py]
model: {{path: {model}, cpu_threads: 1}}
agent: {{name: every_agent, modules: {{reader: {{name: every_module, answer_tokens: 5}}}}}}
env: {{name: every_environment, rewards: {{every_reward: {{scale: 0.2}}}}}}
data: {{train: every_dataset, eval: {{few: {{name: every_dataset, limit: 2}}}}}}
train:
  name: every_trainer
  note: mine
  steps: 2
  prompts_per_step: 2
  group_size: 3
  advantage: every_estimator
  loss: {{objective: every_objective}}
  eval_at_start: false
  eval_at_end: false
eval: {{samples: 1}}
trackers: []
"""


@pytest.fixture
def config(tmp_path, monkeypatch, own_components, small_model_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMFACTORY_TRUSTED", str(tmp_path / "trusted.json"))
    # A file of the same contents is imported once in a process, and `own_components` forgets its components.
    Path("every.py").write_text(f"{PLUGIN}# {tmp_path}\n")
    Path("run.yaml").write_text(CONFIG.format(model=small_model_path))
    return "run.yaml"


def metrics(folder):
    rows = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if "second" not in key and key != "tflops"} for row in rows]


def test_this_file_has_a_component_of_every_registry(config):
    load_config(config)
    assert {registry.kind: NAMES[registry.kind] for registry in ALL} == NAMES
    assert all(NAMES[registry.kind] in registry.names() for registry in ALL)


def test_components_of_every_registry_are_listed(config, capsys):
    assert run(["list", "--verbose", "--config", config]) == 0
    listed = capsys.readouterr().out
    assert [name for name in NAMES.values() if f"  {name} " not in listed] == []
    for option in ("The longest answer, in tokens.", "Reward of one character.", "A word for the metrics."):
        assert option in listed


@pytest.mark.parametrize(
    "override",
    [
        "agent.modules.reader.answer_tokens=0",
        "agent.speed=1",
        "env.speed=1",
        "env.rewards.every_reward.scale=0",
        "data.train.speed=1",
        "train.note=[1]",
        "train.loss.objective={name: every_objective, speed: 1}",
        "train.advantage={name: every_estimator, speed: 1}",
    ],
)
def test_options_of_every_registry_are_validated(config, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0].rpartition(".")[0].replace(".", r"\.")):
        load_config(config, [override])


def test_a_run_of_only_own_components_is_planned(config, capsys):
    assert run(["train", config, "--dry-run"]) == 0
    assert "every_trainer" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_a_run_of_only_own_components_trains_evaluates_resumes(config):
    assert run(["train", config, "--output", "whole"]) == 0
    assert run(["eval", "whole", "--output", "scores"]) == 0
    assert run(["train", config, "train.steps=1", "--output", "part"]) == 0
    assert run(["train", config, "--output", "part", "--resume"]) == 0
    assert metrics("part") == metrics("whole") and len(metrics("whole")) == 2
    digests = {sha256(Path(name, "final", "model.safetensors").read_bytes()).digest() for name in ("whole", "part")}
    assert len(digests) == 1
    (result,) = Path("scores").glob("*.json")
    assert "every_reward" in result.read_text()
