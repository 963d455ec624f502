"""Advantage estimators and objectives as open registries: RLOO, and a plugin of each kind through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.config.grpo import GrpoOptions
from memfactory.errors import MemFactoryError
from memfactory.policy.advantages.base import AdvantageEstimator, StepRewards
from memfactory.policy.batch import step_advantages
from memfactory.registry import ADVANTAGES
from memfactory.types import Group, Reply, Reward, Task, Tokens, Trajectory, Turn


@ADVANTAGES.register("test_too_few")
class TooFew(AdvantageEstimator):
    """One advantage, however many trajectories there are."""

    def advantages(self, given: StepRewards) -> list[float | None]:
        return [0.0]


@ADVANTAGES.register("test_not_a_number")
class NotANumber(AdvantageEstimator):
    """NaN for everyone."""

    def advantages(self, given: StepRewards) -> list[float | None]:
        return [float("nan")] * len(given.rewards)


def group(*rewards: float | None) -> Group:
    turn = Turn("answer", (), Reply("", "stop", Tokens((1,), (2,), (-1.0,))), True)
    return Group(
        Task(id="t7", question="q", answers=()),
        tuple(Trajectory(i, (turn,), "", Reward(r)) for i, r in enumerate(rewards)),
    )


def advantages(name: str, *rewards: float | None) -> list[float | None]:
    return step_advantages(group(*rewards), GrpoOptions(advantage=name))["answer"]


def test_rloo_compares_with_the_others_of_the_group() -> None:
    # 1 - 1/3, 0 - 2/3, 0 - 2/3, 1 - 1/3; with three known ones: 1 - 0, 0 - .5, 0 - .5.
    assert advantages("rloo", 1, 0, 0, 1) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert advantages("rloo", 1, None, 0, 0) == [pytest.approx(1.0), None, pytest.approx(-0.5), pytest.approx(-0.5)]
    assert advantages("rloo", 0.1, 0.1, 0.1) == [0, 0, 0]


def test_an_estimators_mistake_names_it_and_the_task() -> None:
    with pytest.raises(MemFactoryError, match=r"test_too_few.* 1 advantages for 2 trajectories .*t7"):
        advantages("test_too_few", 1, 0)
    with pytest.raises(MemFactoryError, match=r"test_not_a_number.* gave nan .*t7"):
        advantages("test_not_a_number", 1, 0)


PLUGIN = '''
from typing import ClassVar

from pydantic import Field

from memfactory.config.objectives import EstimatorOptions, ObjectiveOptions
from memfactory.registry import ADVANTAGES, OBJECTIVES
from memfactory.policy.advantages.base import AdvantageEstimator, StepRewards
from memfactory.policy.objectives.base import Objective, Parts, Terms, nowhere


class TemperedOptions(ObjectiveOptions):
    """Options of `tempered`."""

    power: float = Field(1.0, gt=0)
    """The ratio is raised to this."""


@OBJECTIVES.register("tempered")
class Tempered(Objective):
    """-r^power A."""

    Options: ClassVar[type[ObjectiveOptions]] = TemperedOptions

    def parts(self, terms: Terms) -> Parts:
        ratio = (self.options.power * terms.log_ratio).exp()
        return Parts(-ratio * terms.advantages, ratio, *nowhere(ratio))


@ADVANTAGES.register("member_parity")
class MemberParity(AdvantageEstimator):
    """1 for attempts of even number, -1 for the others."""

    def advantages(self, given: StepRewards) -> list[float | None]:
        return [1.0 if t.index % 2 == 0 else -1.0 for t in given.group.trajectories]
'''
CONFIG = """
plugins: [losses.py]
model: {{path: {model}}}
agent: {{name: memory_agent, chunk_tokens: 64, memory_tokens: 4, answer_tokens: 4}}
env: {{name: longcontext, rewards: {{em: 1.0}}}}
data: {{train: rows.jsonl}}
train:
  name: grpo
  steps: 1
  prompts_per_step: 1
  group_size: 2
  minibatches: 1
  advantage: member_parity
  loss: {{objective: {{name: tempered, power: 0.5}}}}
trackers: []
"""


@pytest.fixture
def work(tmp_path: Path, small_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "losses.py").write_text(PLUGIN)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"context": "A b c.", "input": "Which?", "answers": ["b"]}) + "\n")
    (tmp_path / "run.yaml").write_text(CONFIG.format(model=small_model_path))
    return tmp_path


def test_a_plugins_objective_and_estimator_train(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "run.yaml", "--output", "out"]) == 0
    (row,) = [json.loads(line) for line in (work / "out" / "metrics.jsonl").read_text().splitlines()]
    # No reward differs, but the estimator's advantages do: something is trained.
    assert row["tokens/trained"] > 0 and row["grad_norm"] > 0
    assert "nothing was learned" not in "".join(capsys.readouterr())


def test_a_plugins_own_options_are_checked(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (work / "run.yaml").read_text().replace("power: 0.5", "pwr: 0.5")
    (work / "wrong.yaml").write_text(text)
    assert run(["config", "validate", "wrong.yaml"]) != 0
    told = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert "train.loss.objective.pwr: unknown key; did you mean 'power'?" in told


def warnings_of(tmp_path: Path, train: str) -> str:
    path = tmp_path / "some.yaml"
    path.write_text(f"agent: memory_agent\nenv: longcontext\ntrain: {{name: grpo, {train}}}\n")
    return "\n".join(load_config(path).warnings)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("loss: {objective: sapo, dual_clip: 3}", "train.loss.dual_clip: 3.0 has no effect: objective is sapo"),
        ("loss: {sapo_positive: 2}", "train.loss.sapo_positive: 2.0 has no effect: objective is ppo"),
        ("loss: {objective: gspo}", "a range of 0.2 never takes effect; its paper clips at 0.0003 and 0.0004"),
        ("loss: {objective: kl_cov}", "raise train.minibatches or train.epochs"),
        ("advantage: rloo, normalize: none", "train.normalize: 'none' has no effect: advantage is rloo"),
    ],
)
def test_what_takes_no_effect_deserves_a_word(tmp_path: Path, train: str, expected: str) -> None:
    assert expected in warnings_of(tmp_path, train)


@pytest.mark.parametrize("part", ["grpo_gspo", "grpo_memagent", "grpo_memory_r1", "grpo_single_gpu"])
def test_no_shipped_trainer_has_an_idle_option(tmp_path: Path, part: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"agent: memory_agent\nenv: longcontext\ntrain: {part}\n")
    assert "train." not in "\n".join(load_config(path).warnings)
