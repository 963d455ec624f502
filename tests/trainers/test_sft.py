"""Supervised fine-tuning: what is learnt of a conversation, the stages, resuming, and rows that cannot be used."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from memfactory.build import training_data
from memfactory.config import load_config
from memfactory.config.sft import SftOptions
from memfactory.data.base import Row
from memfactory.data.chat_rows import conversation
from memfactory.errors import DataError, MemFactoryError
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_tokenizer
from memfactory.model.options import ModelConfig
from memfactory.policy.policy import Policy
from memfactory.policy.supervised import Encoder
from memfactory.trainers.sft import SftTrainer
from memfactory.training import run_training

CONFIG = """
model: {{path: {model}}}
agent: {{name: memory_agent}}
env: {{name: longcontext}}
train:
  name: sft
  batch_size: 4
  stages:
    - {{steps: 4, data: talks.jsonl}}
    - {{steps: 3, data: {{path: talks.jsonl, limit: 3}}, learning_rate: 2.0e-3}}
  optimizer: {{learning_rate: 1.0e-3, schedule: cosine, warmup_steps: 1}}
  save_every: 2
  keep_checkpoints: 9
trackers: [{{kind: jsonl}}]
seed: 3
"""


def talk(*contents):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


@pytest.fixture
def chat(small_model_path):
    return ChatFormat(load_tokenizer(ModelConfig(path=str(small_model_path))))


@pytest.fixture
def resolved(tmp_path, small_model_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [talk(f"What is the code of {name}?", f"The code is {n}.") for n, name in enumerate("ABCDEF")]
    Path("talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("sft.yaml").write_text(CONFIG.format(model=small_model_path))
    return lambda *overrides: load_config("sft.yaml", overrides, command="train")


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_reply_is_learnt_after_all_that_came_before_it(chat):
    row = Row(talk("Hi", "Hello", "Bye", "See you"), "talks row 1")
    first, second = Encoder(chat).turns(row, number=7)
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.tokenizer.decode(first.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.decode(first.reply_ids[:-1]) == "Hello" and first.reply_ids[-1] == end
    # The second prompt is the whole first exchange as a model that speaks it would have left it.
    assert second.prompt_ids[: len(first.prompt_ids) + len(first.reply_ids)] == first.prompt_ids + first.reply_ids
    assert chat.decode(second.reply_ids[:-1]) == "See you"
    assert (first.advantage, first.prompt, second.prompt) == (1.0, 7, 7)


def test_a_reply_cannot_contain_a_control_token(chat):
    row = Row(talk("Hi", "a <|im_end|> b"), "talks row 1")
    (turn,) = Encoder(chat).turns(row, number=0)
    assert sum(token in chat.stop_ids for token in turn.reply_ids) == 1
    assert chat.decode(turn.reply_ids[:-1]) == "a <|im_end|> b"


def test_the_loss_falls_and_the_stages_have_their_own_rates(resolved):
    folder = run_training(resolved("output=run"))
    rows = metrics(folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 7 and losses[-1] < losses[0] - 0.5
    assert [row["stage"] for row in rows if "stage" in row] == [1, 1, 1, 1, 2, 2, 2]
    # One warm-up step each, then half a cosine over the 3 (stage 1) and 2 (stage 2) steps that are left.
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates == pytest.approx([1e-3, 1e-3, 0.75e-3, 0.25e-3, 2e-3, 2e-3, 1e-3], rel=1e-6)


def test_every_row_is_learnt_once_an_epoch(resolved, chat):
    # Replies of 2, 4, 8, ... tokens with their end: no other choice of rows has the same sum.
    rows = [talk("Say it.", "#" * (2**n - 1)) for n in range(1, 7)]
    Path("talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = [len(Encoder(chat).turns(Row(row, "a row"), 0)[0].reply_ids) for row in rows]
    assert lengths == [2, 4, 8, 16, 32, 64]
    settings = ("output=run", "train.stages=[]", "train.steps=6", "train.batch_size=2", "data.train=talks.jsonl")
    trained = [row["tokens/trained"] for row in metrics(run_training(resolved(*settings)))]
    assert sum(trained[:3]) == sum(trained[3:]) == 126
    assert trained[:3] != trained[3:]


def test_a_run_resumed_in_either_stage_or_between_them_ends_with_the_same_weights(resolved):
    folder = run_training(resolved("output=run"))
    whole = load_file(folder / "final/model.safetensors")
    for step in (2, 4, 6):
        run_training(resolved("output=run"), resume=str(folder / f"checkpoints/step-{step}"))
        again = load_file(folder / "final/model.safetensors")
        assert [name for name in whole if not whole[name].equal(again[name])] == []


def test_a_stage_that_fails_at_once_loses_nothing_of_the_one_before(resolved, monkeypatch):
    whole = load_file(run_training(resolved("output=whole")) / "final/model.safetensors")
    backward = Policy.backward

    def fails_in_the_second_stage(policy, turns):
        if policy.schedule.options.learning_rate == 2e-3:
            raise MemFactoryError("the longer conversations do not fit")
        return backward(policy, turns)

    with monkeypatch.context() as patch, pytest.raises(MemFactoryError, match="do not fit"):
        patch.setattr(Policy, "backward", fails_in_the_second_stage)
        run_training(resolved("output=run", "train.save_every=3"))
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["step-3", "step-4"]
    again = load_file(
        run_training(resolved("output=run", "train.save_every=3"), resume="auto") / "final/model.safetensors"
    )
    assert [name for name in whole if not whole[name].equal(again[name])] == []


def test_a_run_resumed_with_fewer_steps_than_it_took_is_done(resolved, caplog):
    stages = "train.stages=[]", "data.train=talks.jsonl", "output=run"
    run_training(resolved(*stages, "train.steps=3"))
    run_training(resolved(*stages, "train.steps=2"), resume="auto")
    assert "nothing is left to do after step 3" in caplog.text


def test_without_stages_the_rows_of_data_train_are_learnt(resolved):
    given = resolved("train.stages=[]", "train.steps=5", "data.train=talks.jsonl")
    (stage,) = SftTrainer.read(given.config.train.options, training_data(given)).stages
    assert (stage.first, stage.last, len(stage.rows)) == (1, 5, 6)


def test_the_steps_of_a_curriculum_are_the_sum_of_its_stages():
    stages = [{"steps": 3, "data": "a.jsonl"}, {"steps": 4, "data": "b.jsonl"}]
    assert SftOptions.model_validate({"stages": stages}).steps == 7
    with pytest.raises(ValueError, match="steps is 9, but the stages have 7"):
        SftOptions.model_validate({"stages": stages, "steps": 9})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"text": "x"},
            "talks row 4: field 'messages' should be a list of messages (or 'conversations' as in ShareGPT",
        ),
        ({"messages": ["x"]}, "talks row 4: field 'messages[0]' should be an object with fields, got the text 'x'"),
        (
            {"messages": [{"role": "human", "content": "x"}]},
            "field 'messages[0].role' should be one of system, user, assistant",
        ),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "field 'messages[0].content' should be a text, got the number 3",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, "no message is the assistant's"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the first message is the assistant's"),
    ],
)
def test_a_row_that_cannot_be_learnt_names_the_row_and_the_field(values, words):
    with pytest.raises(DataError) as caught:
        conversation(Row(values, "talks row 4"))
    assert words in str(caught.value)
