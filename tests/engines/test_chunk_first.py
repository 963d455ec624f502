"""Prompts with the chunk before the memory: the episodes of a task share all of it, token for token."""

from __future__ import annotations

import json
from itertools import takewhile

import pytest
import yaml

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.data.synthetic.fact_traces import FactTracesDataset, FactTracesOptions
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.errors import ConfigError
from memfactory.formats.recurrent_prompts import CHUNK_FIRST_PROMPT, UPDATE_PROMPT
from memfactory.model.codec import FileCodec
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from memfactory.modules.recurrent_memory import RecurrentMemoryModule, RecurrentMemoryOptions
from memfactory.play import Sampler, play
from memfactory.registry import Options
from memfactory.types import Message, Task

CONTEXT = "The tower of Rome was built in 1901.\n\nAda moved to Oslo; Bob did not.  " * 12
MEMORIES = ["Ada lives in Oslo.", "\n- Oslo", "", "<|im_end|> 1901", "東京 🙂", "- Ada", " ", "Ada lives in Rome."]
CONFIG = """\
model: tiny
env: longcontext
agent: {agent}
"""


@pytest.fixture(scope="module")
def chat():
    return load_chat(ModelConfig())


def played(order: str, codec) -> list[Episode]:
    """A group of eight attempts whose memories differ from the second section on."""
    options = RecurrentMemoryOptions(chunk_tokens=60, memory_tokens=30, order=order)
    agent = MemoryAgent(Options(), {"memory": RecurrentMemoryModule(options, codec)})
    task = Task("t", "When was the tower built?", ("1901",), CONTEXT)
    said = {}

    def reply(messages, sampling):
        said[sampling.seed] = MEMORIES[len(said) % 8]
        return said[sampling.seed]

    episodes = [Episode(task, index=member, seed=1) for member in range(8)]
    return list(play(Sampler(agent, {"policy": ScriptedEngine(reply)}), episodes))


def shared_text(chat, prompts: list[str]) -> list[str]:
    """What the ids that all prompts begin with say, and what is left of each prompt."""
    ids = [chat.prompt_ids([Message("user", prompt)]) for prompt in prompts]
    shared = sum(1 for _ in takewhile(lambda column: len({*column}) == 1, zip(*ids, strict=False)))
    read = [chat.tokenizer.decode(row[:shared]) for row in ids]
    assert len(set(read)) == 1
    return [read[0], *(chat.tokenizer.decode(row[shared:]) for row in ids)]


def test_trajectories_share_the_ids_up_to_the_end_of_the_chunk(chat):
    episodes = played("chunk_first", chat)
    steps = [[episode.turns[step] for episode in episodes] for step in range(len(episodes[0].turns))]
    sections = list(RecurrentMemoryModule(RecurrentMemoryOptions(chunk_tokens=60), chat).chunks(CONTEXT, "t"))
    assert len(steps) == len(sections) + 1 and len(sections) > 5
    for turns, section in list(zip(steps, sections))[1:]:
        shared, *rests = shared_text(chat, [turn.messages[0].content for turn in turns])
        assert f"<section>\n{section}\n</section>" in shared
        assert len(set(rests)) == 8 - 1  # Of the eight memories the empty and the blank one are equal.
        assert all(section not in rest for rest in rests)


def test_by_default_memory_comes_first_and_no_chunk_is_shared(chat):
    assert RecurrentMemoryOptions().prompts.update == UPDATE_PROMPT
    episodes = played("memory_first", chat)
    shared, *rests = shared_text(chat, [episode.turns[3].messages[0].content for episode in episodes])
    assert "<section>" not in shared and all("<section>" in rest for rest in rests)


def test_both_orders_show_the_same_and_ask_for_the_same_replies():
    first, second = (played(order, FileCodec("tiny")) for order in ("memory_first", "chunk_first"))
    for one, other in zip(first, second):
        assert [turn.step for turn in one.turns] == [turn.step for turn in other.turns]
        assert one.turns[-1].messages == other.turns[-1].messages
    sections = [episode.turns[2].messages[0].content.split("<section>")[1].split("</section>")[0] for episode in first]
    assert sections[0] in second[0].turns[2].messages[0].content


@pytest.mark.parametrize(
    ("given", "wording"),
    [
        ({}, UPDATE_PROMPT),
        ({"order": "chunk_first"}, CHUNK_FIRST_PROMPT),
        ({"order": "chunk_first", "prompts": {"system": "Be brief."}}, CHUNK_FIRST_PROMPT),
        # A written config names order and wording; another order on the command line takes its own wording along.
        ({"order": "chunk_first", "prompts": {"update": UPDATE_PROMPT}}, CHUNK_FIRST_PROMPT),
        ({"order": "memory_first", "prompts": {"update": CHUNK_FIRST_PROMPT}}, UPDATE_PROMPT),
        ({"order": "chunk_first", "prompts": {"update": "{chunk}{prompt}{memory}"}}, "{chunk}{prompt}{memory}"),
        ({"prompts": {"update": "{prompt}{memory}{chunk}{memory}"}}, "{prompt}{memory}{chunk}{memory}"),
    ],
)
def test_the_built_in_wording_follows_the_order_and_ones_own_stays(given, wording):
    options = RecurrentMemoryOptions.model_validate(given)
    assert options.prompts.update == wording
    assert RecurrentMemoryOptions.model_validate(options.model_dump()) == options
    assert options.prompts.system == given.get("prompts", {}).get("system")


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        (
            '{name: memory_agent, order: chunk_first, prompts: {update: "{question} {memory} {section}"}}',
            "the update prompt is memory_first, but `order` is chunk_first",
        ),
        # Some of the section behind the memory would not be shared.
        (
            '{name: memory_agent, order: chunk_first, prompts: {update: "{question} {section} {memory} {section}"}}',
            "the update prompt is memory_first, but `order` is chunk_first",
        ),
        (
            '{name: memory_agent, prompts: {update: "{question} {section} {memory}"}}',
            "the update prompt is chunk_first, but `order` is memory_first",
        ),
        ("{name: memory_agent, order: section}", "expected one of 'memory_first' or 'chunk_first'"),
        ("{name: memory_agent, order: [1]}", "expected one of 'memory_first' or 'chunk_first'"),
    ],
)
def test_a_wording_of_another_order_is_refused_where_it_stands(tmp_path, agent, told):
    (tmp_path / "run.yaml").write_text(CONFIG.format(agent=agent))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml")
    (problem,) = caught.value.problems
    assert "run.yaml:3: agent." in problem and told in problem


def test_a_written_config_can_be_run_in_the_other_order(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG.format(agent="memory_agent_chunk_first"))
    written = load_config(tmp_path / "run.yaml")
    assert written.config.agent.modules["memory"].options.prompts.update == CHUNK_FIRST_PROMPT
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(written.values))
    assert load_config(tmp_path / "again.yaml").config == written.config
    turned = load_config(tmp_path / "again.yaml", ["agent.modules.memory.order=memory_first"]).config
    assert turned.agent.modules["memory"].options.prompts.update == UPDATE_PROMPT


def test_the_part_differs_from_the_published_agent_in_the_order_alone(tmp_path):
    loaded = []
    for name in ("memory_agent", "memory_agent_chunk_first"):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.format(agent=name))
        options = load_config(tmp_path / f"{name}.yaml").config.agent.modules["memory"].options
        loaded.append(options.model_dump(exclude={"order": True, "prompts": {"update"}}))
    assert loaded[0] == loaded[1]


def test_demonstrations_can_be_worded_in_this_order():
    options = FactTracesOptions(rows=20, reader={"order": "chunk_first"})
    users = [row.values["messages"][0]["content"] for row in FactTracesDataset(options, None).rows()]
    updates = [user for user in users if "<section>" in user]
    assert updates and all(user.index("<section>") < user.index("<memory>") for user in updates)


def test_train_eval_and_infer_go_in_this_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent = "{name: memory_agent, order: chunk_first, chunk_tokens: 64, memory_tokens: 6, answer_tokens: 4}"
    train = "{name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, eval_at_start: false}"
    (tmp_path / "run.yaml").write_text(
        CONFIG.format(agent=agent) + f"train: {train}\ndata: {{train: {{name: facts, rows: 2}}}}\ntrackers: []\n"
    )
    assert run(["data", "export", "facts", "rows=1", "--output", "rows.jsonl"]) == 0
    assert run(["train", "run.yaml", "model.dtype=float32", "model.cpu_threads=1", "--output", "out"]) == 0
    (path,) = (tmp_path / "out" / "transcripts").glob("*.jsonl")
    for line in path.read_text().splitlines():
        for turn in json.loads(line)["turns"]:
            prompt = turn["messages"][0]["content"]
            assert turn["step"] == "answer" or prompt.index("<section>") < prompt.index("<memory>")
    assert run(["eval", "out", "--data", "rows.jsonl", "--samples", "1", "--output", "evaluated"]) == 0
    assert run(["infer", "out", "--input", "rows.jsonl", "--output", "answers.jsonl"]) == 0
    (answer,) = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert all(turn["prompt_tokens"] > turn["reply_tokens"] > 0 for turn in answer["turns"])
