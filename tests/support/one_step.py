"""One step of training on the embedded model with short replies, rewarded by a plugin that tells replies apart."""

from pathlib import Path
from typing import Any

from memfactory.config import load_config
from memfactory.files.json_lines import read_json_lines
from memfactory.training import run_training

SHORT = {"memory_tokens": 8, "answer_tokens": 8, "max_tokens": 12}
PARTS = """
from zlib import crc32

from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import MODULES, REWARDS
from memfactory.roles import Extractor
from memfactory.types import Candidate

@MODULES.register("verbatim")
class Verbatim(Extractor):
    \"\"\"Makes a candidate of every utterance, without a model.\"\"\"

    def dialogue(self, episode, utterances):
        yield from ()
        return [Candidate(turn.text) for turn in utterances]

@REWARDS.register("lottery")
class Lottery(RewardFunction):
    \"\"\"A number between 0 and 1 by the text of the replies: other replies, another reward.\"\"\"

    def score(self, episodes):
        replies = ["\\0".join(turn.reply.text for turn in episode.turns) for episode in episodes]
        return [crc32(text.encode()) % 1000 / 1000 for text in replies]
"""


def one_step(folder: Path, agent: str, env: str, *overrides: str, trainer: str = "grpo") -> tuple[Path, dict[str, Any]]:
    """The run folder of one step of training, and the step's metrics."""
    (folder / "parts.py").write_text(PARTS, encoding="utf-8")
    config = folder / "run.yaml"
    config.write_text(f"agent: {agent}\nenv: {env}\nplugins: [parts.py]\n", encoding="utf-8")
    modules = load_config(config, list(overrides)).config.agent.modules
    short = [
        f"agent.{name}={value}" if len(modules) == 1 else f"agent.modules.{slot}.{name}={value}"
        for slot, module in modules.items()
        for name, value in SHORT.items()
        if name in type(module.options).model_fields
    ]
    groups = "prompts_per_step: 2, group_size: 4, temperature: 2.0" if trainer == "grpo" else "batch_size: 4"
    settings = [
        "model={path: tiny, dtype: float32, cpu_threads: 1}",
        f"train={{name: {trainer}, steps: 1, {groups}}}",
        "env.rewards={em: 1.0, lottery: 1.0}",
        "trackers=[]",
        f"output={folder / 'run'}",
    ]
    run = run_training(load_config(config, [*overrides, *settings, *short], command="train"))
    (metrics,) = read_json_lines(run / "metrics.jsonl")
    return run, metrics
