"""Every module that fits a slot of a shipped agent takes a step of training there, from one line of YAML."""

import pytest

from memfactory.config.slots import fits
from memfactory.files.json_lines import read_json_lines
from memfactory.registry import AGENTS, MODULES
from one_step import one_step

# An agent that reads a conversation, and one that reads a text, with rows of that kind.
CONVERSATIONS = ("memory_bank", "data.train={name: conversations, rows: 2}")
TEXTS = ("longcontext", "data.train={name: facts, rows: 2, chunks: 1}")
# A retriever needs a bank with items; these rows bring one.
ITEMS = ("rerank", "data.train={name: conversations, form: rerank, rows: 2}")


def swaps():
    """Every shipped agent, each of its slots, and every other module that fits there."""
    for agent in filter(AGENTS.is_builtin, AGENTS.names()):
        for slot, default in AGENTS.get(agent).slots.items():
            for name in filter(MODULES.is_builtin, MODULES.names()):
                if name != default and fits(MODULES.get(name), AGENTS.get(agent), slot):
                    yield agent, slot, name


def test_every_role_of_a_slot_has_a_module_to_swap():
    slots = {slot for name in filter(AGENTS.is_builtin, AGENTS.names()) for slot in AGENTS.get(name).slots}
    assert {slot for _, slot, _ in swaps()} == slots


@pytest.mark.parametrize(("agent", "slot", "name"), list(swaps()))
def test_a_swapped_module_trains_a_step_in_its_slot(agent, slot, name, tmp_path):
    module = MODULES.get(name)
    rows = TEXTS if "reader" in module.roles else ITEMS if slot == "retriever" else CONVERSATIONS
    swap = f"agent.modules.{slot}={name}"
    if module.learns_itself:
        _, metrics = one_step(tmp_path, agent, *rows, swap, trainer="online")
        assert f"{slot}/skipped" in metrics
        return
    others = []
    if slot == "updater":
        # The short replies of a step hold no candidates for it.
        others.append("agent.modules.extractor=verbatim")
    if not module.steps:
        # It asks no model, so it trains nothing itself: the answerer trains beside it.
        others.append("agent.modules.answerer.interface=generate")
    run, metrics = one_step(tmp_path, agent, *rows, swap, *others)
    assert metrics["tokens/trained"] > 0 and metrics["grad_norm"] > 0
    turns = [turn for row in read_json_lines(*(run / "transcripts").iterdir()) for turn in row["turns"]]
    assert {turn["step"] for turn in turns if turn["trainable"]} >= {*module.steps}
