"""Transcripts show what was really fed, and on request the ids; they hold step rewards and memory banks."""

import json
from types import MappingProxyType
from typing import ClassVar

import pytest

from memfactory.components import ModuleOptions
from memfactory.config import load_config
from memfactory.dialogue import Agent, Ask, Module, Shared
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.play import Sampler, play
from memfactory.rollout import trajectory_of
from memfactory.training import run_training
from memfactory.transcripts import read_transcripts, write_transcripts
from memfactory.types import Candidate, Group, Message, Reply, Reward, Task, Tokens, Trajectory, Turn


def written(folder, group, **options):
    path = write_transcripts(folder, 1, [group], [{}], **options)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [json.loads(json.dumps(row.to_json())) for row in read_transcripts(path)] == rows
    return rows


def asked(*messages, step="answer"):
    reply = Reply("Ana", "stop", Tokens((1, 2, 3), (4, 5), (-0.25, -0.12345678)))
    return Turn(step, tuple(Message(*message) for message in messages), reply, True)


def group(*turns, reward=Reward(1.0)):
    return Group(Task("t1", "Who?", ("Ana",)), (Trajectory(0, turns, "Ana", reward),))


def test_a_system_prompt_of_the_templates_own_is_shown(tmp_path, small_model_path):
    from transformers import AutoTokenizer

    from memfactory.model.chat import ChatFormat

    tokenizer = AutoTokenizer.from_pretrained(small_model_path)
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content|trim + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    chat = ChatFormat(tokenizer)
    messages = (Message("user", "Who? <|im_end|>\n"),)
    turn = Turn("answer", messages, Reply("Ana", "stop", Tokens(chat.prompt_ids(messages), (4,), (-0.5,))), True)
    (row,) = written(tmp_path, group(turn), frame=chat.frame)
    (told,) = row["turns"]
    assert told["template"] == (
        "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert told["messages"] == [{"role": "user", "content": "Who? <|im_end|>\n"}]


def test_a_turn_that_a_helper_speaks_has_no_template_of_the_policy(tmp_path):
    helper = Turn("judge", (Message("user", "a"),), Reply("b", "stop"), False, engine="reader")
    turns = asked(("user", "a")), asked(("system", "s"), ("user", "b")), helper
    (row,) = written(tmp_path, group(*turns), frame=lambda roles: "|".join(f"{role}:{{}}" for role in roles))
    assert [turn.get("template") for turn in row["turns"]] == ["user:{}", "system:{}|user:{}", None]


def test_ids_and_log_probabilities_are_kept_on_request(tmp_path):
    (row,) = written(tmp_path, group(asked(("user", "Who?"))), tokens=True)
    tokens = {"prompt_ids": [1, 2, 3], "reply_ids": [4, 5], "logprobs": [-0.25, -0.123457]}
    assert row["turns"][0]["tokens"] == tokens
    (row,) = written(tmp_path, group(asked(("user", "Who?"))))
    assert "tokens" not in row["turns"][0]


def test_rewards_of_steps_are_told(tmp_path):
    reward = Reward(1.0, MappingProxyType({"em": 1.0}), MappingProxyType({"extract": 0.5, "update": None}))
    (row,) = written(tmp_path, group(asked(("user", "Who?")), reward=reward))
    assert row["reward"] == {"total": 1.0, "parts": {"em": 1.0}, "steps": {"extract": 0.5, "update": None}}


class Noting(Module):
    """Adds what the reply says, and at `update` replaces the first item by it."""

    steps = ("add", "update")

    def dialogue(self, episode):
        said = yield Ask("add", (Message("user", "What?"),), 8)
        episode.bank.add(Candidate(said.text, sources=("D1:1",)))
        said = yield Ask("update", (Message("user", "And?"),), 8)
        episode.bank.update("m1", said.text)
        episode.retrieved = tuple(episode.bank.list())


class Keeper(Agent):
    """Builds a bank in shared work, and changes it in its own."""

    slots: ClassVar = {"noter": "none"}

    def build(self, episode):
        episode.bank = self.banks.open()
        yield Ask("read", (Message("user", "Read."),), 8)
        episode.bank.add("from shared work")
        return episode.bank

    def dialogue(self, episode):
        bank = yield Shared("bank", episode.task, self.build)
        episode.bank = bank.fork()
        if episode.index < 2:
            yield from self.modules["noter"].play(episode)


def test_a_bank_is_told_with_what_each_turn_did_and_an_equal_one_once(tmp_path):
    episodes = [Episode(Task("t", "Who?", ("x",)), index=member) for member in range(4)]
    agent = Keeper(None, {"noter": Noting(ModuleOptions(), None)})
    list(play(Sampler(agent, {"policy": ScriptedEngine(lambda messages, _: f"said {messages[0].content}")}), episodes))
    trajectories = tuple(trajectory_of(episode, Reward(1.0)) for episode in episodes)
    first, second, third, fourth = written(tmp_path, Group(episodes[0].task, trajectories))
    assert [(one["turn"], one["operation"], one["id"]) for one in first["bank"]["changes"]] == [
        (None, "ADD", "m1"),
        (1, "ADD", "m2"),
        (2, "UPDATE", "m1"),
    ]
    assert first["bank"]["changes"][2]["before"] == {"id": "m1", "value": "from shared work"}
    assert first["bank"]["items"][0] == {"id": "m1", "value": "said And?", "version": 2}
    assert first["bank"]["items"][1]["sources"] == ["D1:1"] and first["bank"]["retrieved"] == ["m1", "m2"]
    assert second["bank"] == {"same_as": 0, "retrieved": ["m1", "m2"]}
    # Nothing of their own: two more attempts on the bank as it was built.
    assert [one["turn"] for one in third["bank"]["changes"]] == [None]
    assert fourth["bank"] == {"same_as": 2, "retrieved": []}


@pytest.mark.parametrize("tokens", [False, True])
def test_a_training_run_writes_them(tmp_path, monkeypatch, tokens):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"context": "Ada is old.", "input": "Who?", "answers": ["A"]}) + "\n"
    )
    (tmp_path / "run.yaml").write_text(
        "model: {path: tiny, device: cpu}\nagent: {name: memory_agent, memory_tokens: 4, answer_tokens: 4}\n"
        "env: longcontext\ndata: {train: rows.jsonl}\ntrackers: []\n"
        "train: {name: grpo, steps: 1, prompts_per_step: 1, group_size: 2}\n"
    )
    kept = f"train.transcript_tokens={str(tokens).lower()}"
    folder = run_training(load_config(tmp_path / "run.yaml", [kept], command="train"))
    (path,) = (folder / "transcripts").iterdir()
    row = json.loads(path.read_text().splitlines()[0])
    for turn in row["turns"]:
        assert turn["template"].count("{0}") == 1 and turn["template"].endswith("assistant\n")
        assert len(turn.get("tokens", {}).get("logprobs", [])) == (turn["reply_tokens"] if tokens else 0)
