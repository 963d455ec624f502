"""A plugin with a reward that tells the replies of a small random model apart."""

_PLUGIN = '''
from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import REWARDS


@REWARDS.register("NAME")
class Vowels(RewardFunction):
    """The share of the answer's letters that are an e or an a."""

    def score(self, episodes):
        return [sum(c in "ea" for c in e.answer or "") / max(len(e.answer or ""), 1) for e in episodes]
'''


def vowels_plugin(name):
    """The text of the plugin with its reward under `name`."""
    return _PLUGIN.replace("NAME", name)
