"""Whether a reward asks a language model is what its class says, not what its options are called."""

import pytest

from memfactory.config import load_config
from memfactory.config.rules import reward_engines
from memfactory.errors import ConfigError
from memfactory.evaluation.targets import asks_engine, without_unused
from memfactory.registry import REWARDS

PLUGIN = '''
from typing import ClassVar
from memfactory.envs.rewards.base import RewardFunction
from memfactory.components import RewardOptions
from memfactory.registry import REWARDS

class CarOptions(RewardOptions):
    engine: str = "diesel"
    """What drives the car."""

@REWARDS.register("drives")
class Drives(RewardFunction):
    """Knows engines of another kind."""
    Options: ClassVar[type[CarOptions]] = CarOptions

    def score(self, episodes):
        return [float(self.options.engine in (episode.answer or "")) for episode in episodes]

@REWARDS.register("asks_{suffix}")
class Asks(Drives):
    """Asks a model."""
    asks_a_model = True
'''


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("cars")
    (tmp_path / "cars.py").write_text(PLUGIN.replace("{suffix}", "one"))
    (tmp_path / "run.yaml").write_text(
        "plugins: [cars.py]\nmodel: tiny\nagent: no_memory\nenv: {name: longcontext, rewards: {drives: 1.0}}\n"
    )
    yield lambda *overrides: load_config(tmp_path / "run.yaml", overrides)
    for name in ("drives", "asks_one"):
        REWARDS._registered.pop(name, None)


def test_an_option_called_engine_makes_no_judge(load):
    resolved = load()
    assert not asks_engine("drives") and list(reward_engines(resolved.config)) == []
    assert without_unused(resolved, {}).config.env.options.rewards == {"drives": 1.0}


def test_a_reward_that_says_it_asks_needs_its_engine(load):
    with pytest.raises(ConfigError, match=r"env\.rewards\.asks_one\.engine: .*'diesel'"):
        load("env.rewards={asks_one: 1.0}")
    speaker = "{kind: openai, model: m, base_url: 'http://127.0.0.1:9/v1'}"
    resolved = load("env.rewards={asks_one: 1.0}", f"engines={{diesel: {speaker}}}")
    assert asks_engine("asks_one") and without_unused(resolved, {}).config.engines == {}
