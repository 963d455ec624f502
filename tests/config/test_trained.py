"""A trainer trains what the config says, or the config is refused."""

import pytest

from memfactory.config import load_config
from memfactory.config.training import GrpoOptions, LoopOptions, TrainerOptions
from memfactory.errors import ConfigError
from memfactory.registry import TRAINERS, Options

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


@pytest.mark.parametrize(
    ("options", "words"),
    [(Bare, "(Bare) derive from none of GrpoOptions"), (Warm, "the supervised loss at temperature 1.0 whatever")],
)
def test_a_plugin_trainer_that_would_train_otherwise_is_refused(folder, options, words):
    trainer_with(options)
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, "model: tiny\nagent: memory_agent\nenv: longcontext\ntrain: mine\n"))
    assert "x.yaml:4: train.name: trainer 'mine' cannot be used" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("options", [Own, Loop])
def test_a_plugin_trainer_that_trains_as_it_says_is_taken(folder, options):
    trainer_with(options)
    load_config(written(folder, "model: tiny\nagent: memory_agent\nenv: longcontext\ntrain: mine\n"))
