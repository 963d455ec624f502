"""Every agent of configs/agents with every environment of configs/envs: it loads, and it takes a step of training."""

from pathlib import Path

import pytest

from memfactory.formats.render import TEXT, render_task, utterances_of
from memfactory.types import MemoryItem, Task, Utterance
from one_step import one_step

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


def test_every_environment_has_rows_here():
    assert sorted(path.stem for path in (CONFIGS / "envs").glob("*.yaml")) == sorted(ENVS)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("agent", AGENTS)
def test_every_pair_takes_a_step_of_training(agent, env, tmp_path):
    _, metrics = one_step(tmp_path, agent, env, *EXTRA.get((agent, env), ()), f"data.train={ENVS[env]}")
    assert metrics["turns"] >= 1
    assert metrics["groups/valid"] >= 1
    assert metrics["tokens/trained"] > 0
    assert metrics["grad_norm"] > 0


def test_a_text_without_a_conversation_is_read_by_paragraphs():
    task = Task("t", "q", (), context="One.\nStill one.\n\n  \nTwo.\n")
    assert utterances_of(task) == (Utterance(TEXT, "One.\nStill one."), Utterance(TEXT, "Two."))
    conversation = (Utterance("Ada", "Hello."),)
    assert utterances_of(Task("t", "q", (), context="One.", conversation=conversation)) == conversation
    assert utterances_of(Task("t", "q", ())) == ()


def test_a_conversation_is_read_as_a_text_with_the_memory_before_it():
    item = MemoryItem("1", "", "Ada lives in Oslo.")
    task = Task("t", "q", (), memory=(item,), conversation=(Utterance("Ada", "I moved to Rome."),))
    assert render_task(task) == "- Ada lives in Oslo.\n\nAda: I moved to Rome."
    assert render_task(Task("t", "q", (), context="As it is.")) == "As it is."
