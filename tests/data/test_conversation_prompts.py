"""The prompts of demonstrated conversations are exactly those that the modules of an agent ask with."""

import json
import re
from pathlib import Path

import pytest

from memfactory.build import build_agent
from memfactory.config import load_config
from memfactory.data.base import Row
from memfactory.data.synthetic.conversation_traces import READERS, ConversationTracesDataset
from memfactory.data.synthetic.conversations import ConversationsDataset
from memfactory.envs.memory_rows import MemoryRowReader
from memfactory.episode import Episode
from memfactory.memory.bank import BankSource
from memfactory.registry import MODULES
from memfactory.types import Candidate, MemoryItem, Reply, Task, Utterance
from word_codec import WordCodec

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^(?:\d+\. |\[\d+\] |- )?(.*)$")


def lines_of(text):
    return [] if text == "(nothing)" else [LINE.match(line)[1] for line in text.splitlines()]


def items_of(text):
    return [MemoryItem(f"m{n}", line.split()[0], line) for n, line in enumerate(lines_of(text), 1)]


def asking(step, values, options):
    """The dialogue of the step's module over the content of `values`, and its episode."""
    module = MODULES.get(READERS[step])(MODULES.options(READERS[step])(**options), WordCodec())
    items = items_of(values.get("memory", ""))
    bank = BankSource().open(items)
    related = tuple(item.id for item in items)
    episode = Episode(Task("t", values.get("question", "Who?"), ("a",), related=related))
    if step == "extract":
        turns = [line.split(": ", 1) for line in values["conversation"].splitlines()]
        inputs = ([Utterance(speaker, text, f"D1:{n}") for n, (speaker, text) in enumerate(turns, 1)],)
    elif step == "update":
        inputs = (bank, [Candidate(line) for line in lines_of(values["candidates"])])
    else:
        inputs = (bank,) if step == "rerank" else (items,)
    return module.dialogue(episode, *inputs), episode


@pytest.mark.parametrize("preset", ["default", "short"])
@pytest.mark.parametrize("step", READERS)
def test_a_demonstration_has_the_prompt_of_the_module_and_a_reply_in_its_form(step, preset):
    # All memories in the order of the bank, as the demonstration has them.
    own = {"order": "bank", "keep": 5} if step == "rerank" else {}
    modules = {step: {"prompts": preset, **own}}
    dataset = ConversationTracesDataset(
        ConversationTracesDataset.Options(steps={step: 1}, rows=40, modules=modules), Path()
    )
    wordings = set()
    for index, row in enumerate(dataset.rows()):
        prompt, reply = row.values["messages"]
        values = values_in(prompt["content"], dataset.prompts[step])
        dialogue, episode = asking(step, values, modules[step])
        ask = next(dialogue)
        assert [(message.role, message.content) for message in ask.messages] == [("user", prompt["content"])], index
        with pytest.raises(StopIteration):
            dialogue.send(Reply(reply["content"], "stop"))
        assert all(form == 1.0 for forms in episode.checks.values() for form in forms) and episode.checks
        wordings.add(prompt["content"])
    assert len(wordings) > 30


@pytest.mark.parametrize("careless", [0.0, 0.5])
@pytest.mark.parametrize("preset", ["default", "short"])
def test_an_update_in_the_form_of_mem0_leads_to_the_same_memory(preset, careless):
    def after(form):
        own = {"prompts": preset, "format": form}
        options = {"steps": {"update": 1}, "rows": 40, "modules": {"update": own}, "careless_update": careless}
        dataset = ConversationTracesDataset(ConversationTracesDataset.Options(**options), Path())
        module = MODULES.get("naive_updater")(MODULES.options("naive_updater")(**own), WordCodec())
        for row in dataset.rows():
            prompt, reply = row.values["messages"]
            values = values_in(prompt["content"], dataset.prompts["update"])
            if form == "mem0":
                values = {
                    "memory": "\n".join(item["text"] for item in json.loads(values["memory"])),
                    "candidates": "\n".join(json.loads(values["candidates"])),
                }
            items = items_of(values["memory"])
            bank = BankSource().open(items)
            episode = Episode(Task("t", "Who?", ("a",), related=tuple(item.id for item in items)))
            dialogue = module.dialogue(episode, bank, [Candidate(line) for line in lines_of(values["candidates"])])
            assert next(dialogue).messages[0].content == prompt["content"]
            with pytest.raises(StopIteration):
                dialogue.send(Reply(reply["content"], "stop"))
            # A list without entries decides about nothing.
            assert episode.checks["update"] == [float(reply["content"] != '{"memory": []}')]
            yield [item.text for item in items], sorted(item.text for item in bank.list()), reply["content"]

    plain, mem0 = list(after("operations")), list(after("mem0"))
    assert [rows[:2] for rows in plain] == [rows[:2] for rows in mem0]
    events = {entry["event"] for *_, reply in mem0 for entry in json.loads(reply)["memory"]}
    assert events >= {"NONE", "UPDATE", "ADD"} and ("DELETE" in events) == (careless > 0)


def values_in(prompt, template):
    """The values of the placeholders of `template` in `prompt`."""
    pattern = re.escape(template)
    for name in ("conversation", "memory", "candidates", "question", "limit"):
        pattern = pattern.replace(re.escape("{" + name + "}"), f"(?P<{name}>.*?)", 1)
    return re.fullmatch(pattern, prompt, re.DOTALL).groupdict()


@pytest.mark.parametrize(
    ("name", "steps"),
    [("memory_r1", {"extractor": "extract", "updater": "update", "answerer": "answer"}),
     ("rmm", {"retriever": "rerank", "answerer": "cite"})],
)  # fmt: skip
def test_the_cold_starts_show_the_prompts_that_their_agents_ask_with(name, steps):
    cold = load_config(ROOT / "configs" / f"smollm2_{name}_sft.yaml").config
    trained = load_config(ROOT / "configs" / f"smollm2_{name}.yaml").config
    dataset = ConversationTracesDataset(cold.data.train.options, Path())
    assert set(cold.data.train.options.steps) == set(steps.values())
    for config in (cold, trained):
        for slot, step in steps.items():
            options = config.agent.modules[slot].options
            assert dataset.prompts[step] == (options.wording if step == "update" else options.prompt)
            if step == "rerank":
                assert options.keep == cold.data.train.options.keep


def test_an_agent_asks_with_the_prompt_of_a_demonstration_of_its_session():
    config = load_config(ROOT / "configs" / "smollm2_memory_r1.yaml").config
    agent = build_agent(config.agent, WordCodec())
    row = ConversationsDataset(ConversationsDataset.Options(rows=1), Path()).rows()[0]
    task = MemoryRowReader().task(Row(row.values, "row"))
    request = next(agent.dialogue(Episode(task)))
    turns = "\n".join(f"{turn['speaker']}: {turn['text']}" for turn in row.values["conversation"])
    dataset = ConversationTracesDataset(
        ConversationTracesDataset.Options(modules={"extract": {"prompts": "short"}}), Path()
    )
    assert [message.content for message in request.messages] == [
        dataset.prompts["extract"].replace("{conversation}", turns)
    ]
