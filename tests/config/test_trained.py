"""A trainer's options say what it trains, at which temperature and with which loss; its own checks count."""

import pytest

from memfactory.config import load_config
from memfactory.config.grpo import GrpoOptions
from memfactory.config.sft import SftOptions
from memfactory.config.training import LoopOptions, TrainerOptions
from memfactory.errors import ConfigError
from memfactory.registry import TRAINERS, Options
from memfactory.types import SamplingParams

RERANKED = "model: tiny\nagent: {name: memory_rmm, modules: {retriever: %s}}\nenv: rerank\ntrain: {name: %s}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch, own_components):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder, text):
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return "x.yaml"


def test_grpo_refuses_a_module_that_learns_by_itself(folder):
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, RERANKED % ("linear_reranker", "grpo")))
    assert "x.yaml:2: agent.modules.retriever.name: 'linear_reranker' learns by itself" in str(caught.value)
    assert "use `train: online`, or `interface: inference` to keep it as it is" in str(caught.value)


def test_a_frozen_learner_is_welcome_under_grpo_and_elsewhere(folder):
    frozen = "{name: linear_reranker, interface: inference}"
    load_config(written(folder, RERANKED % (frozen, "grpo")))
    load_config(written(folder, RERANKED % ("linear_reranker", "online")))
    load_config(written(folder, RERANKED % ("linear_reranker", "grpo")), command="infer")


def test_online_needs_a_learner_that_is_not_frozen(folder):
    frozen = RERANKED % ("{name: linear_reranker, interface: inference}", "online")
    rows = "data: {train: {name: conversations, form: rerank, rows: 4}}\n"
    with pytest.raises(ConfigError, match="no module learns online"):
        load_config(written(folder, frozen + rows), command="train")


def trainer_with(options):
    class Mine:
        """Mine."""

        Options = options

    TRAINERS.register("mine")(Mine)


class Bare(Options):
    """Bare."""

    steps: int = 3
    """Steps."""


class Warm(TrainerOptions):
    """Warm."""

    temperature: float = 0.5
    """Temperature."""


class Own(GrpoOptions):
    """Own."""

    clip: float = 0.5
    """Clip."""


class Loop(LoopOptions):
    """Loop."""


def test_options_of_a_trainer_derive_from_those_of_every_trainer(folder):
    trainer_with(Bare)
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, "model: tiny\nagent: memory_agent\nenv: longcontext\ntrain: mine\n"))
    assert "x.yaml:4: train.name: trainer 'mine'" in str(caught.value)
    assert "its Options must derive from LoopOptions of memfactory.config.training" in str(caught.value)


@pytest.mark.parametrize("options", [Own, Loop, Warm])
def test_a_trainer_with_options_of_its_own_is_taken(folder, options):
    trainer_with(options)
    load_config(written(folder, "model: tiny\nagent: memory_agent\nenv: longcontext\ntrain: mine\n"))


def test_what_a_trainer_declares_is_what_the_policy_is_trained_with():
    # Without a loss of its own it is the negative log-likelihood: plain REINFORCE at advantage 1.
    assert (Warm().sampling.temperature, Warm().policy_loss.objective) == (0.5, "reinforce")
    assert (SftOptions().sampling.temperature, SftOptions().policy_loss.objective) == (1.0, "reinforce")
    given = GrpoOptions(temperature=0.7, top_p=0.9, loss={"objective": "sapo"})
    assert (given.sampling, given.policy_loss.objective) == (SamplingParams(0.7, 0.9), "sapo")


def test_a_loss_that_is_no_loss_is_refused_where_it_is_declared():
    with pytest.raises(TypeError, match="the option `loss` of Wrong must be a LossOptions"):

        class Wrong(TrainerOptions):
            """Wrong."""

            loss: float = 0.5
            """Loss."""


def test_a_trainers_own_check_refuses_and_warns_with_its_line(folder):
    class Picky(TrainerOptions):
        """Picky."""

        power: float = 1.0
        """Power."""

        def check(self, config, problems):
            if self.power > 2:
                problems.add(("train", "power"), "is above 2")
            return [*super().check(config, problems), "train.power: 1 changes nothing"]

    trainer_with(Picky)
    text = "model: tiny\nagent: memory_agent\nenv: longcontext\ntrain:\n  name: mine\n  power: %s\n"
    assert "train.power: 1 changes nothing" in load_config(written(folder, text % 1)).warnings
    with pytest.raises(ConfigError, match=r"x.yaml:6: train.power: is above 2"):
        load_config(written(folder, text % 3))


def test_a_check_that_fails_is_told_with_its_file(folder):
    class Broken(LoopOptions):
        """Broken."""

        def check(self, config, problems):
            return [self.nothing]

    trainer_with(Broken)
    with pytest.raises(ConfigError, match=r"the checks of Broken \(.*\) failed: AttributeError"):
        load_config(written(folder, "model: tiny\nagent: memory_agent\nenv: longcontext\ntrain: mine\n"))
