"""Every agent of configs/agents with every environment of configs/envs: it loads, and it takes a step of training."""

from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.files.json_lines import read_json_lines
from memfactory.formats.render import TEXT, told, whole
from memfactory.training import run_training
from memfactory.types import MemoryItem, Task, Utterance

CONFIGS = Path(__file__).parents[2] / "configs"
AGENTS = sorted(path.stem for path in (CONFIGS / "agents").glob("*.yaml"))
# Each environment with rows of its own kind.
ENVS = {
    "longcontext": {"name": "facts", "rows": 4, "chunks": 1},
    "memory_bank": {"name": "conversations", "rows": 4},
    "rerank": {"name": "conversations", "form": "rerank", "rows": 4},
}
# Overrides of pairs whose default parts have nothing to learn: an empty bank leaves a reranker nothing to choose from,
# and rows without a conversation leave an extractor nothing to read.
EXTRA = {
    ("memory_rmm", "longcontext"): ["agent.modules.extractor.interface=generate"],
    ("memory_r1", "rerank"): ["agent.modules.answerer.interface=generate"],
}
SHORT = {"memory_tokens": 8, "answer_tokens": 8, "max_tokens": 12}
LOTTERY = """
from zlib import crc32

from memfactory.envs.rewards.base import RewardFunction
from memfactory.components import RewardOptions
from memfactory.registry import REWARDS

class Options(RewardOptions):
    pass

@REWARDS.register("lottery")
class Lottery(RewardFunction):
    \"\"\"A number between 0 and 1 from the replies: different replies of one group have different rewards.\"\"\"

    Options = Options

    def score(self, episodes):
        replies = ["\\0".join(turn.reply.text for turn in episode.turns) for episode in episodes]
        return [crc32(text.encode()) % 1000 / 1000 for text in replies]
"""


@pytest.fixture(scope="module")
def lottery(tmp_path_factory):
    plugin = tmp_path_factory.mktemp("plugins") / "lottery.py"
    plugin.write_text(LOTTERY)
    return plugin


def test_every_environment_has_rows_here():
    assert sorted(path.stem for path in (CONFIGS / "envs").glob("*.yaml")) == sorted(ENVS)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("agent", AGENTS)
def test_every_pair_takes_a_step_of_training(agent, env, lottery, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"agent: {agent}\nenv: {env}\nplugins: [{lottery}]\n")
    plain = load_config(config).config
    modules = plain.agent.modules
    short = [
        f"agent.{name}={value}" if len(modules) == 1 else f"agent.modules.{slot}.{name}={value}"
        for slot, module in modules.items()
        for name, value in SHORT.items()
        if name in type(module.options).model_fields
    ]
    resolved = load_config(
        config,
        [
            "model={path: tiny, dtype: float32, cpu_threads: 1}",
            "train={name: grpo, steps: 1, prompts_per_step: 2, group_size: 4}",
            *short,
            *EXTRA.get((agent, env), ()),
            f"data.train={ENVS[env]}",
            "env.rewards={em: 1.0, lottery: 1.0}",
            "trackers=[]",
            f"output={tmp_path / 'run'}",
        ],
        command="train",
    )
    folder = run_training(resolved)
    (row,) = read_json_lines(folder / "metrics.jsonl")
    assert row["turns"] >= 1
    assert row["groups/valid"] >= 1
    assert row["tokens/trained"] > 0
    assert row["grad_norm"] > 0


def test_a_text_without_a_conversation_is_read_by_paragraphs():
    task = Task("t", "q", (), context="One.\nStill one.\n\n  \nTwo.\n")
    assert told(task) == (Utterance(TEXT, "One.\nStill one."), Utterance(TEXT, "Two."))
    conversation = (Utterance("Ada", "Hello."),)
    assert told(Task("t", "q", (), context="One.", conversation=conversation)) == conversation
    assert told(Task("t", "q", ())) == ()


def test_a_conversation_is_read_as_a_text_with_the_memory_before_it():
    item = MemoryItem("1", "", "Ada lives in Oslo.")
    task = Task("t", "q", (), memory=(item,), conversation=(Utterance("Ada", "I moved to Rome."),))
    assert whole(task) == "- Ada lives in Oslo.\n\nAda: I moved to Rome."
    assert whole(Task("t", "q", (), context="As it is.")) == "As it is."
