"""Records and warnings count the tokens of a long text that are read and left out."""

import json
import logging

import pytest

from chat_server import config_text, write_tokenizer
from memfactory.cli.app import run
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.memory.bank import BankSource
from memfactory.model.codec import FileCodec
from memfactory.modules.full_context_answer import FullContextAnswer, FullContextAnswerOptions
from memfactory.modules.naive_extractor import NaiveExtractor, NaiveExtractorOptions
from memfactory.modules.recurrent_memory import RecurrentMemoryModule, RecurrentMemoryOptions
from memfactory.play import PlaySettings, Sampler, play
from memfactory.registry import AGENTS
from memfactory.rollout import texts_read
from memfactory.types import Reading, Task, Utterance
from word_codec import WordCodec

# A sentence has seven tokens of the word tokenizer. Six chunks of 14 tokens hold 12 sentences, the first and the
# last six; the 20th is far from both ends.
SENTENCES = [f"The code of Person{number} is {number}." for number in range(40)]
SENTENCES[20] = "The code of Carol is three."
LONG = " ".join(SENTENCES)
TOKENS = 7 * 40


@pytest.fixture(autouse=True)
def fresh_logging():
    """Logging as it is before the first command, so that a command's warnings reach this test's stderr."""
    logger = logging.getLogger("memfactory")
    logger.handlers.clear()
    logger.propagate = True


@pytest.fixture
def place(tmp_path, chat_server, monkeypatch):
    (tmp_path / "reader.yaml").write_text(config_text(chat_server.url, write_tokenizer(tmp_path / "words.json")))
    (tmp_path / "long.txt").write_text(LONG)
    short = " ".join(SENTENCES[:2])
    rows = [(LONG, "What is the code of Carol?", "three"), (short, "What is the code of Dora?", "five")]
    listed = [{"context": context, "input": question, "answers": [gold]} for context, question, gold in rows]
    (tmp_path / "rows.json").write_text(json.dumps(listed))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"id": f"r{n}", **row}) + "\n" for n, row in enumerate(listed))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


ASK = ("infer", "reader.yaml", "--question", "What is the code of Carol?", "--document", "long.txt")


def test_infer_finds_a_fact_in_the_middle_of_a_long_file(place, capfd):
    assert run([*ASK]) == 0
    printed = capfd.readouterr()
    assert "three" in printed.out
    assert f"read whole: up to {TOKENS} tokens, where training and evaluation read 84 of a text" in printed.err
    assert "agent.modules.memory.max_chunks=6 on the command line does so here too" in printed.err


@pytest.mark.parametrize(
    "override", ["agent.max_chunks=6", "agent.modules.memory.max_chunks=6", "agent.truncate=center"]
)
def test_infer_obeys_limits_of_the_command_line_with_a_warning(place, capfd, override):
    assert run([*ASK, override]) == 0
    printed = capfd.readouterr()
    assert "three" not in printed.out
    left_out = f"{TOKENS - 84} of {TOKENS} tokens are left out"
    assert "1 of 1 texts are longer" in printed.err and left_out in printed.err
    assert "agent.modules.memory.max_chunks is 6, and agent.modules.memory.max_chunks=null reads all" in printed.err


def test_every_answer_counts_the_tokens_read(place):
    words = ["infer", "reader.yaml", "--input", "rows.jsonl", "--output", "out.jsonl", "agent.max_chunks=6"]
    assert run(words) == 0
    rows = {row["id"]: row for row in map(json.loads, (place / "out.jsonl").read_text().splitlines())}
    assert [(rows[id]["tokens_read"], rows[id]["tokens_dropped"]) for id in ("r0", "r1")] == [
        (84, TOKENS - 84),
        (14, 0),
    ]


def evaluated(place, *words):
    assert run(["eval", "reader.yaml", "--data", "rows.json", "--output", "out", *words]) == 0
    (dataset,) = json.loads((place / "out/results.json").read_text())["models"]["reader"]["datasets"].values()
    lines = (place / "out/samples/reader/rows.jsonl").read_text().splitlines()
    return (
        dataset["texts"],
        [row for row in map(json.loads, lines) if "task_id" in row],
        (place / "out/results.md").read_text(),
    )


def test_evaluation_counts_cut_texts_in_records_and_tables(place, capfd):
    texts, records, table = evaluated(place)
    assert texts == {"texts": 2, "cut": 1, "read": 84 + 14, "dropped": TOKENS - 84}
    assert {(row["tokens_read"], row["tokens_dropped"]) for row in records} == {(84, TOKENS - 84), (14, 0)}
    # 196 of 294 tokens are two thirds.
    assert table.count("66.7% (1 of 2 texts)") > 1 and "text left out" in table
    printed = capfd.readouterr().err
    assert printed.count("1 of 2 texts are longer") == printed.count("196 of 294 tokens are left out") == 1


def test_models_with_the_same_agent_share_a_warning(place, capfd):
    assert run(["eval", "reader.yaml", "reader.yaml", "--data", "rows.json", "--output", "out"]) == 0
    assert capfd.readouterr().err.count("196 of 294 tokens are left out") == 1


def test_tables_have_no_such_column_for_whole_texts(place, capfd):
    texts, _, table = evaluated(place, "agent.max_chunks=null")
    assert texts["dropped"] == 0 and "left out" not in table + capfd.readouterr().err


RUN = """
model: {path: tiny, dtype: float32, cpu_threads: 1}
agent: {name: memory_agent, chunk_tokens: 16, max_chunks: 2, memory_tokens: 4, answer_tokens: 4}
env: longcontext
data: {train: {name: facts, rows: 8}, eval: {held: {name: facts, rows: 2, split: heldout}}}
train: {name: grpo, steps: 2, prompts_per_step: 2, group_size: 2, eval_every: 1}
eval: {samples: 1, limit: 2}
trackers: [console]
"""


def test_training_warns_once_of_cut_texts_and_records_them(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    assert run(["train", "run.yaml", "--output", "run"]) == 0
    printed = capfd.readouterr().err
    assert printed.count("step 1: 2 of 2 texts are longer") == 1 and "step 2: " not in printed
    assert printed.count("data.eval.held: 2 of 2 texts are longer") == 1
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0.5 < row["texts/dropped"] < 1 for row in metrics if "reward" in row)
    transcript = json.loads((tmp_path / "run/transcripts/step-000001.jsonl").read_text().splitlines()[0])
    assert transcript["tokens_read"] == 32 and transcript["tokens_dropped"] > 100


def test_the_plan_counts_cut_tokens(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    assert run(["train", "run.yaml", "--dry-run"]) == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "left out of the first 8 texts" in printed and "agent.modules.memory.max_chunks=null reads all" in printed


def played(module, task, reply="**Answer:** x"):
    episode = Episode(task)
    engine = ScriptedEngine(lambda messages, sampling: reply)
    agent = AGENTS.get("memory_agent")(None, {"memory": module})
    list(play(Sampler(agent, {"policy": engine}), [episode], PlaySettings(frozen=True)))
    return episode.reading


@pytest.mark.parametrize("keep", ["last", "center", "first"])
def test_a_baseline_counts_the_context_that_it_does_not_show(keep):
    task = Task("t", "Who?", ("x",), " ".join(map(str, range(50))))
    module = FullContextAnswer(FullContextAnswerOptions(context_tokens=20, keep=keep), WordCodec())
    assert played(module, task) == Reading(20, 30)
    assert played(FullContextAnswer(FullContextAnswerOptions(), WordCodec()), task) == Reading(50)


def test_the_last_joined_tokens_make_no_negative_count():
    task = Task("t", "Who?", ("x",), " ".join(map(str, range(50))))
    module = RecurrentMemoryModule(RecurrentMemoryOptions(chunk_tokens=7, max_chunks=3), WordCodec())
    assert played(module, task) == Reading(21, 29)


def test_an_extractor_counts_the_conversation_it_reads():
    conversation = (Utterance("Ann", "I like tea"), Utterance("Bob", "I do not"))
    episode = Episode(Task("t", "Who?", ("x",)), bank=BankSource().open())
    module = NaiveExtractor(NaiveExtractorOptions(), WordCodec())
    next(module.dialogue(episode, conversation))
    assert episode.reading == Reading(8)


def test_unreported_reading_is_unknown_and_not_zero():
    assert texts_read({"a": None, "b": Reading(3, 1)}).texts == 1


def test_a_tokenizer_file_that_cuts_and_pads_measures_whole_texts(tmp_path):
    from tokenizers import Tokenizer

    path = write_tokenizer(tmp_path / "words.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=512)
    tokenizer.save(str(path))
    assert len(FileCodec(str(path)).offsets(LONG)) == TOKENS
