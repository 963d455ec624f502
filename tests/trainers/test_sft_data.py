"""What SFT learns from: rows in three forms, checked before the weights, within the model's context."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.build import training_data
from memfactory.config import load_config
from memfactory.config.sft import SftOptions
from memfactory.data.base import Row
from memfactory.data.chat_rows import conversation
from memfactory.errors import ConfigError, DataError
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_tokenizer
from memfactory.model.options import ModelConfig
from memfactory.plan.plan import make_plan
from memfactory.policy.supervised import Encoder, Longest
from memfactory.trainers.sft import SftTrainer
from memfactory.training import run_training
from memfactory.types import Message

# As a thinking model's template: a prompt is opened without the block that a whole conversation has in its last reply.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# It opens a block that it does not write back.
OPENED = THINKING.replace("<think>\n\n</think>\n\n", "").replace(
    "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
)


def talk(*contents):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes talks.jsonl and a config that names nothing but a model, the trainer and the data."""
    monkeypatch.chdir(tmp_path)
    Path("sft.yaml").write_text(
        "model: {path: tiny, cpu_threads: 1}\ntrain: {name: sft, batch_size: 4}\ndata: {train: talks.jsonl}\n"
        "trackers: []\n"
    )

    def write(*rows, overrides=()):
        Path("talks.jsonl").write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return load_config("sft.yaml", overrides, command="train")

    return write


def templated(template):
    tokenizer = load_tokenizer(ModelConfig())
    tokenizer.chat_template = template
    return ChatFormat(tokenizer)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (
            {
                "system": "Be brief.",
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}],
            },
            [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo")],
        ),
        (
            {"instruction": "Add.", "input": "1 and 2", "output": "3", "history": [["Hi", "Yo"]]},
            [("user", "Hi"), ("assistant", "Yo"), ("user", "Add.\n1 and 2"), ("assistant", "3")],
        ),
        ({"instruction": "Add 1 and 2.", "input": "", "output": "3"}, [("user", "Add 1 and 2."), ("assistant", "3")]),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                    {"role": "assistant", "content": "Yo"},
                ]
            },
            [("user", "Hi"), ("assistant", "Yo")],
        ),
    ],
)
def test_rows_may_be_messages_sharegpt_or_alpaca(values, found):
    assert conversation(Row(values, "row 1")) == tuple(Message(role, content) for role, content in found)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"conversations": []}, "row 1: field 'conversations' should be a list of messages, got an empty list"),
        (
            {"conversations": [{"from": "observation", "value": "x"}]},
            "row 1: field 'conversations[0].from' should be one of system, user, assistant, human, gpt, got the text",
        ),
        ({"instruction": "Add."}, "row 1 has no field 'output'; it has instruction"),
        ({"instruction": "Add.", "output": " "}, "row 1: all of the assistant's messages are empty"),
        ({"instruction": "Add.", "output": "3", "history": [["Hi"]]}, "row 1: field 'history[0]' should be a pair"),
        ({"instruction": "\ud800", "output": "3"}, "field 'instruction' should be a text, but character 0 is half"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "row 1: field 'messages[0].content' should be a text, got a list of 1",
        ),
    ],
)
def test_a_row_of_another_form_is_told_by_its_field(values, words):
    with pytest.raises(DataError) as caught:
        conversation(Row(values, "row 1"))
    assert words in str(caught.value)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["messages", "conversations", "instruction", "output", "history", "input"]), ANY)
)
def test_whatever_a_row_holds_it_is_a_conversation_or_an_error(values):
    try:
        messages = conversation(Row(values, "row 1"))
    except DataError as error:
        assert str(error).startswith("row 1")
    else:
        assert any(message.role == "assistant" for message in messages)


def test_sft_needs_neither_agent_nor_environment(files):
    resolved = files(*[talk("Hi", f"Yo {n}") for n in range(6)], overrides=["output=run"])
    folder = run_training(resolved)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # One pass over 6 rows in batches of 4 takes 2 steps.
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["learning_rate"] == 1e-5
    # What was written is read back, and a bare model's agent speaks with the trained weights.
    assert load_config(folder / "config.yaml").config.agent.name == "memory_agent"
    assert load_config(folder, command="eval").config.model.path == str(folder / "final")


def test_held_out_sets_need_the_agent_that_plays_them(files):
    with pytest.raises(ConfigError, match="agent: is missing"):
        files(talk("Hi", "Yo"), overrides=["data.eval.x=facts"])


def test_every_bad_line_is_told_before_a_weight_is_loaded(files):
    rows = [talk("Hi", f"Yo {n}") for n in range(64)]
    rows[17], rows[40] = "{oops", {"messages": 4}
    resolved = files(*rows, overrides=["output=run", "train.steps=2", "model.random_weights=true"])
    with pytest.raises(DataError) as caught:
        run_training(resolved)
    told = "talks.jsonl line 18: not JSON"
    assert told in str(caught.value) and "talks.jsonl line 41: field 'messages'" in str(caught.value)
    assert any(told in problem for problem in make_plan(resolved).problems)


def test_bad_lines_are_left_out_and_counted_where_asked(files, caplog):
    options = ["output=run", "data.train.skip_bad_rows=true"]
    resolved = files(talk("Hi", "Yo"), "{oops", talk("Hi", "Yes"), overrides=options)
    (stage,) = SftTrainer.read(resolved.config.train.options, training_data(resolved)).stages
    assert [row.source for row in stage.rows] == ["talks.jsonl line 1", "talks.jsonl line 3"]
    assert "1 of 3 rows of talks.jsonl were left out; the first: talks.jsonl line 2: not JSON" in caplog.text


def long_rows():
    # The embedded tokenizer has a token for each "#".
    return [talk("Hi", "#" * length) for length in (5, 900, 20)]


def lengths(resolved):
    found = SftTrainer.read(resolved.config.train.options, training_data(resolved))
    (stage,) = found.stages
    return [len(turn.reply_ids) for row in stage.rows for turn in found.encoder.turns(row, 0)], found.longest


def test_a_conversation_that_is_too_long_is_an_error(files):
    with pytest.raises(DataError, match=r"talks.jsonl line 2: the conversation has \d+ tokens, but train.max_tokens"):
        lengths(files(*long_rows(), overrides=["train.max_tokens=220"]))


def test_conversations_that_are_too_long_can_be_left_out(files, caplog):
    told = ["train.max_tokens=220", "train.overlong=drop"]
    assert lengths(files(*long_rows(), overrides=told))[0] == [6, 21]
    assert "1 of 3 conversations of talks.jsonl are too long (train.max_tokens is 220) and left out" in caplog.text


def test_conversations_that_are_too_long_can_be_cut(files, caplog):
    replies, longest = lengths(files(*long_rows(), overrides=["train.max_tokens=220", "train.overlong=cut"]))
    assert (replies[0], replies[2], longest) == (6, 21, 220) and 200 < replies[1] < 220
    assert "1 of 3 conversations of talks.jsonl are too long (train.max_tokens is 220) and cut" in caplog.text


def test_the_models_own_context_is_a_limit(files, monkeypatch, small_model_path, tmp_path):
    import shutil

    shutil.copytree(small_model_path, tmp_path / "short")
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(json.dumps({**config, "max_position_embeddings": 220}))
    resolved = files(*long_rows(), overrides=["model.path=short"])
    with pytest.raises(DataError, match="but the model has 220 positions"):
        lengths(resolved)


def test_turns_that_fit_are_learnt_of_a_conversation_that_is_cut():
    chat = templated(THINKING)
    row = Row(talk("Hi", "Yo", "More", "#" * 50), "row 1")
    whole = Encoder(chat).turns(row, 0)
    room = len(whole[1].prompt_ids)
    first, second = Encoder(chat, Longest(room + 3, "so"), "cut").turns(row, 0)
    assert first == whole[0] and second.reply_ids == whole[1].reply_ids[:3] and second.truncated
    assert Encoder(chat, Longest(room, "so"), "cut").turns(row, 0) == [whole[0]]


def test_a_target_has_the_think_block_that_the_template_writes():
    chat = templated(THINKING)
    (turn,) = Encoder(chat).turns(Row(talk("Hi", "Yo"), "row 1"), 0)
    assert chat.tokenizer.decode(turn.prompt_ids).endswith("<|im_start|>assistant\n")
    assert chat.tokenizer.decode(turn.reply_ids) == "<think>\n\n</think>\n\nYo<|im_end|>"


def test_a_target_that_the_template_writes_otherwise_is_told(files, caplog):
    Path("opened.jinja").write_text(OPENED)
    resolved = files(talk("Hi", "Yo"), overrides=["model.chat_template=opened.jinja"])
    found = SftTrainer.read(resolved.config.train.options, training_data(resolved))
    (turn,) = found.encoder.turns(found.stages[0].rows[0], 0)
    assert found.encoder.chat.decode(turn.prompt_ids).endswith("<think>\n")
    # The prompt opened the thinking, so the reply has to end it: "Yo" inside it would be no answer.
    assert found.encoder.chat.tokenizer.decode(turn.reply_ids) == "</think>\n\nYo<|im_end|>"
    assert "the first: talks.jsonl line 1" in caplog.text


def test_a_template_that_refuses_a_row_names_it(files):
    Path("strict.jinja").write_text(
        "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + OPENED
    )
    resolved = files(talk("Hi", "Yo"), overrides=["model.chat_template=strict.jinja"])
    with pytest.raises(DataError, match=r"talks.jsonl line 1: the chat template refuses"):
        SftTrainer.read(resolved.config.train.options, training_data(resolved))


@pytest.mark.parametrize(
    ("values", "rate"),
    [({}, 1e-5), ({"lora": {}}, 1e-4), ({"optimizer": {"beta2": 0.9}}, 1e-5), ({"optimizer": {"learning_rate": 3}}, 3)],
)
def test_the_learning_rate_is_one_of_supervised_learning(values, rate):
    assert SftOptions.model_validate(values).optimizer.learning_rate == rate


def test_stages_may_be_counted_in_passes(files):
    stages = "train.stages=[{steps: 3, data: talks.jsonl}, {epochs: 2.5, data: talks.jsonl}]"
    resolved = files(*[talk("Hi", "Yo")] * 6, overrides=[stages, "data.train=null"])
    first, second = SftTrainer.read(resolved.config.train.options, training_data(resolved)).stages
    # 2.5 passes over 6 rows in batches of 4: 15 rows, 4 steps.
    assert (first.first, first.last, second.first, second.last) == (1, 3, 4, 7)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 1, "steps": 3}, "epochs is given beside steps"),
        ({"epochs": 1, "stages": [{"steps": 3, "data": "x"}]}, "epochs is given beside stages"),
        ({"stages": [{"data": "x"}]}, "a stage needs either steps or epochs"),
        ({"stages": [{"data": "x", "epochs": 1}], "steps": 3}, "steps is 3, but the stages are counted in epochs"),
    ],
)
def test_steps_and_epochs_exclude_each_other(values, words):
    with pytest.raises(ValueError, match=words):
        SftOptions.model_validate(values)


def test_a_schedule_over_epochs_is_not_said_to_be_all_warm_up(files):
    falling = ["train.epochs=2", "train.optimizer.schedule=cosine"]
    assert not any("warm" in told for told in files(talk("a", "b"), overrides=falling).warnings)
    counted = ["train.steps=3", "train.optimizer.schedule=cosine", "train.optimizer.warmup_steps=3"]
    (told,) = [told for told in files(talk("a", "b"), overrides=counted).warnings if "warm" in told]
    assert "3 of 3 optimizer steps are warm-up, so the cosine schedule never falls" in told


def test_the_plan_of_sft_counts_conversations_and_steps(files):
    plan = make_plan(files(*[talk("Hi", "Yo")] * 10, overrides=["train.epochs=2"]))
    work = dict(plan.work)
    assert (work["conversations"], work["optimizer steps"], work["passes over them"]) == ("10", "5", "2.00")
    assert "agent" not in work and plan.problems == ()


def test_generated_rows_are_checked_as_they_are_drawn(files):
    parts = "parts: [{data: {name: file, path: talks.jsonl}}, {data: {name: fact_traces}}]"
    resolved = files(talk("Hi", "Yo"), "{oops", overrides=[f"data.train={{name: mixture, {parts}}}", "train.steps=1"])
    with pytest.raises(DataError, match=r"talks.jsonl line 2: not JSON"):
        SftTrainer.read(resolved.config.train.options, training_data(resolved))


def test_the_configs_and_rows_of_the_page_are_right(files):
    page = (Path(__file__).parents[2] / "docs" / "sft.md").read_text(encoding="utf-8")
    rows = [json.loads(text) for text in re.findall(r"^\| \w+ \| `(\{.*\})` \|$", page, re.MULTILINE)]
    assert [len(conversation(Row(row, "row"))) for row in rows] == [2, 3, 5]
    files(*rows)
    for title, text in re.findall(r'```yaml title="(\S+)"\n(.*?)```', page, re.DOTALL):
        Path(title).write_text(text)
        found = load_config(title, ["model.path=tiny"], command="train")
        assert (
            SftTrainer.read(found.config.train.options, training_data(found)).steps
            == {"my_sft.yaml": 1, "staged.yaml": 21}[title]
        )
