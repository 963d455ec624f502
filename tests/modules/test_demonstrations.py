"""Demonstrations by rule: the evidence joins the note, corrections replace, the note stays, the answer comes alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.api.traces import TracesOptions, write_traces
from memfactory.data.rows import read_rows
from memfactory.demonstrations import Demonstrator, demonstrations
from memfactory.engines.scripted import ScriptedEngine
from memfactory.envs.longcontext import LongcontextEnv, LongcontextOptions
from memfactory.envs.rewards.answers import normalised
from memfactory.episode import Episode
from memfactory.errors import ConfigError, DataError, NoDemonstrationError, PluginError
from memfactory.formats.notes import gold_answer, noted
from memfactory.model.codec import FileCodec
from memfactory.modules.answer import AnswerModule
from memfactory.modules.recurrent_memory import RecurrentMemoryModule, RecurrentMemoryOptions
from memfactory.play import PlaySettings, Sampler, play
from memfactory.registry import DATASETS, Options
from memfactory.types import Task

DOCS = Path(__file__).parents[2] / "docs"
READER = {
    "chunk_tokens": 9,
    "cut": "sentences",
    "memory_tokens": 24,
    "answer_tokens": 8,
    "empty_memory": "nothing yet",
    "prompts": {"update": "{section}|{question}|{memory}", "answer": "{memory}|{question}"},
    "order": "chunk_first",
}


def demonstrator(**options):
    module = RecurrentMemoryModule(RecurrentMemoryOptions.model_validate({**READER, **options}), FileCodec("tiny"))
    return Demonstrator(MemoryAgent(Options(), {"memory": module}))


def shown(task, **options):
    turns = demonstrator(**options).turns(task)
    return [(turn.kind, turn.messages[-1].content, turn.reply) for turn in turns]


OSLO = Task(
    "t",
    "Where does Ada live?",
    ("Rome",),
    # Sentences of 5, 5, 5 and 6 tokens, so that a chunk of 9 holds one.
    "Ada lives in Oslo. Boris lives in Rome. Chen keeps a heron. Ada now lives in Rome.",
    support=("Ada lives in Oslo.", "Ada now lives in Rome."),
    outdated=("Ada lives in Oslo.",),
)


def test_evidence_is_taken_kept_corrected_and_answered_from():
    assert shown(OSLO) == [
        ("taken", "Ada lives in Oslo. |Where does Ada live?|nothing yet", "Ada lives in Oslo."),
        ("same", "Boris lives in Rome. |Where does Ada live?|Ada lives in Oslo.", "Ada lives in Oslo."),
        ("same", "Chen keeps a heron. |Where does Ada live?|Ada lives in Oslo.", "Ada lives in Oslo."),
        ("taken", "Ada now lives in Rome.|Where does Ada live?|Ada lives in Oslo.", "Ada now lives in Rome."),
        ("answer", "Ada now lives in Rome.|Where does Ada live?", "Rome"),
    ]


def test_two_sentences_of_evidence_stand_in_one_note():
    task = Task(
        "t", "Where does the friend of Ada live?", ("Rome",), "", support=("Ada likes Boris.", "Boris lives in Rome.")
    )
    note = noted("Boris lives in Rome. Ada likes\nBoris. Chen sleeps.", (), task)
    assert note == ("Boris lives in Rome.", "Ada likes Boris.")
    assert gold_answer(note, task) == "Rome"
    with pytest.raises(NoDemonstrationError, match="no chunk holds all of a sentence of the evidence"):
        gold_answer(note[:1], task)


def test_without_evidence_the_sentence_closest_to_the_question_is_taken():
    task = Task("t", "When was the old tower of Basel built?", ("1901",), "")
    # "built" is shared with the first, "tower", "Basel" and "built" with the third; 19012 is another number.
    first = noted("A boat was built in 1901. The tower of Basel was built in 19012.", (), task)
    assert first == ("A boat was built in 1901.",)
    better = noted("Snow fell in 1901. The tower of Basel was built in 1901.", first, task)
    assert better == ("The tower of Basel was built in 1901.",)
    assert noted("The tower of Rome was built in 1901.", better, task) == better
    assert gold_answer(better, task) == "1901"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (("Paris",), "no sentence of its text holds a gold answer"),
        (("yes",), "no sentence of its text holds a gold answer"),
        ((), "the task has no gold answer"),
    ],
)
def test_a_task_that_the_rule_cannot_answer_is_left_out_and_counted(answers, reason):
    task = Task("t", "Where does Ada live?", answers, "Ada lives in Oslo, yes.")
    made = demonstrations(demonstrator(), [OSLO, task])
    assert len(made.turns) == 5 and [(len(ids), reason in why) for why, ids in made.left_out.items()] == [(1, True)]


def test_evidence_that_a_cut_divides_or_memory_cannot_hold_is_left_out():
    with pytest.raises(NoDemonstrationError, match="no chunk holds all of a sentence"):
        shown(OSLO, chunk_tokens=4)
    with pytest.raises(NoDemonstrationError, match="a reply of step 'update' needs more than 5 tokens"):
        shown(OSLO, memory_tokens=5)


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("{memory}|{question}|\\boxed{}", "\\boxed{Rome}"),
        ("{memory}|{question}|**Answer:**", "**Answer:** Rome"),
        ("{memory}|{question}|the answer is", "The answer is Rome."),
    ],
)
def test_the_answer_has_the_form_that_the_prompt_asks_for(prompt, reply):
    prompts = {**READER["prompts"], "answer": prompt}
    assert shown(OSLO, prompts=prompts)[-1][-1] == reply


PARAGRAPHS = Task("t", "Where does Ada live?", ("Oslo",), "Ada lives in Oslo.\n\n \nBoris lives in Rome. \n")


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({"prompts": "short"}, ["Oslo.\n\nQuestion: ", "Rome.\n\nQuestion: "]),
        # The end of a chunk that is cut elsewhere stays, and so do the blank lines of any other wording.
        ({"prompts": "short", "chunk_tokens": 3}, ["Ada lives in\n\nQuestion: ", " Oslo.\n\nQuestion: "]),
        ({"prompts": "short", "trim_chunks": False}, ["Oslo.\n\n \n\n\nQuestion: ", "Rome. \n\n\nQuestion: "]),
        ({"prompts": "default", "order": "memory_first", "empty_memory": "-"}, ["Oslo.\n\n \n\n</section>"]),
        ({}, ["Oslo.\n\n \n|Where", "Rome. \n|Where"]),
    ],
)
def test_the_short_prompts_have_one_blank_line_behind_a_paragraph(options, ends):
    agent = demonstrator(cut="paragraphs", **options).agent
    sampler = Sampler(agent, {"policy": ScriptedEngine(lambda messages, sampling: "Oslo")})
    (done,) = play(sampler, [Episode(PARAGRAPHS)], PlaySettings(frozen=True))
    prompts = [turn.messages[-1].content for turn in done.turns if turn.step == "update"]
    assert len(prompts) >= len(ends) and all(end in prompt for end, prompt in zip(ends, prompts, strict=False))


def test_at_most_the_wanted_turns_of_a_kind_are_sampled_by_the_seed():
    made = demonstrations(demonstrator(), [OSLO] * 10)
    assert made.counts == {"taken": 20, "same": 20, "answer": 10}
    few = made.sampled({"taken": 3, "answer": 50}, seed=1)
    assert few.counts == {"taken": 3, "same": 20, "answer": 10}
    assert few == made.sampled({"taken": 3, "answer": 50}, seed=1)
    tasks = demonstrations(demonstrator(), [Task(str(n), *["q", ("Oslo",), "Ada lives in Oslo."]) for n in range(99)])
    assert tasks.sampled({"taken": 5}, seed=1) != tasks.sampled({"taken": 5}, seed=2)


CONFIG = {
    "model": "tiny",
    "agent": {"name": "memory_agent", **READER, "chunk_tokens": 160, "cut": "paragraphs"},
    "env": "longcontext",
    "data": {
        "train": {"name": "facts_in_text", "text": str(DOCS), "corrections": 0.5, "paragraphs": 3, "rows": 40},
    },
    "train": "grpo",
}


def test_a_reader_that_replays_the_traces_answers_every_question(tmp_path):
    config = {**CONFIG, "agent": {**CONFIG["agent"], "chunk_tokens": 1000, "memory_tokens": 60}}
    report = write_traces(config, tmp_path / "traces.jsonl")
    rows = [dict(row.values) for row in read_rows(tmp_path / "traces.jsonl", "traces")]
    assert report.files[0].rows == len(rows) and {row["task"] for row in rows} == {str(n) for n in range(40)}
    replies = {json.dumps(row["messages"][:-1]): row["messages"][-1]["content"] for row in rows}

    def reply(messages, sampling):
        return replies[json.dumps([{"role": m.role, "content": m.content} for m in messages])]

    dataset = DATASETS.get("facts_in_text")
    options = dataset.Options(**{k: v for k, v in CONFIG["data"]["train"].items() if k != "name"})
    tasks = LongcontextEnv(LongcontextOptions(), []).tasks(dataset(options, Path())).tasks
    own = {key: value for key, value in config["agent"].items() if key != "name"}
    module = RecurrentMemoryModule(RecurrentMemoryOptions.model_validate(own), FileCodec("tiny"))
    agent = MemoryAgent(Options(), {"memory": module})
    sampler = Sampler(agent, {"policy": ScriptedEngine(reply)})
    done = list(play(sampler, [Episode(task) for task in tasks], PlaySettings(frozen=True)))
    assert len(done) == 40
    assert all(normalised(episode.answer or "") == normalised(episode.task.answers[0]) for episode in done)


def test_the_same_command_writes_the_same_file(tmp_path):
    config = {**CONFIG, "agent": {**CONFIG["agent"], "chunk_tokens": 1000, "memory_tokens": 60}}
    options = TracesOptions(rows=12, turns={"same": 4, "answer": 3}, seed=3)
    files = [write_traces(config, tmp_path / name, options=options).files[0] for name in ("a.jsonl", "b.jsonl")]
    assert files[0].sha256 == files[1].sha256
    kinds = [row.values["kind"] for row in read_rows(tmp_path / "a.jsonl", "a")]
    assert kinds.count("answer") == 3 and kinds.count("taken") >= 12


def test_modules_without_a_rule_are_refused_and_those_with_one_named(tmp_path):
    assert AnswerModule.demonstrates == ()
    config = {**CONFIG, "agent": "naive_rag"}
    with pytest.raises(ConfigError) as caught:
        write_traces(config, tmp_path / "traces.jsonl")
    assert "the module 'answer' has no rule that demonstrates its steps (answer)" in str(caught.value)
    assert "modules that have one: recurrent_memory" in str(caught.value)


def test_wrong_options_of_traces_say_which(tmp_path):
    with pytest.raises(ConfigError, match="no kind of turn is called 'kept'"):
        write_traces(CONFIG, tmp_path / "a.jsonl", options=TracesOptions(turns={"kept": 1}))
    with pytest.raises(ConfigError, match="expected a file that ends in"):
        write_traces(CONFIG, tmp_path / "a.csv")
    with pytest.raises(DataError, match="no row can be demonstrated: 2 rows are left out: "):
        write_traces(CONFIG, tmp_path / "a.jsonl", {"agent.memory_tokens": 1}, options=TracesOptions(rows=2))


PLUGIN = """
from memfactory.dialogue import Ask, Demonstration
from memfactory.registry import MODULES
from memfactory.roles import Reader
from memfactory.types import Message


@MODULES.register("skim")
class Skim(Reader):
    steps, demonstrates = ("skim",), ("answer",)

    def dialogue(self, episode):
        reply = yield Ask("skim", (Message("user", episode.task.question),), max_tokens=16)
        return self.answer(reply.text)

    def demonstrate(self, episode, ask):
        RETURN
"""


def plugin_config(tmp_path, line):
    (tmp_path / "skim.py").write_text(PLUGIN.replace("RETURN", line))
    agent = {"name": "memory_agent", "modules": {"memory": "skim"}}
    return {**CONFIG, "agent": agent, "plugins": [str(tmp_path / "skim.py")]}


@pytest.mark.usefixtures("own_components")
def test_a_module_of_ones_own_demonstrates_its_steps(tmp_path):
    config = plugin_config(tmp_path, 'return Demonstration(episode.task.answers[0], "answer")')
    write_traces(config, tmp_path / "traces.jsonl", options=TracesOptions(rows=2))
    rows = [row.values for row in read_rows(tmp_path / "traces.jsonl", "traces")]
    assert [(row["step"], row["kind"], len(row["messages"])) for row in rows] == [("skim", "answer", 2)] * 2


@pytest.mark.usefixtures("own_components")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('return "Oslo"', "`demonstrate` returned str 'Oslo'; write Demonstration"),
        ('return Demonstration("Oslo", "guess")', "with a kind of `demonstrates`: answer"),
        ("return 1 / 0", "failed in demonstrating the task '0' at .*skim.py:17: ZeroDivisionError"),
    ],
)
def test_mistakes_in_ones_own_rule_name_the_module(tmp_path, line, message):
    with pytest.raises(PluginError, match=message):
        write_traces(plugin_config(tmp_path, line), tmp_path / "t.jsonl", options=TracesOptions(rows=1))
