"""Templates and tokenizers as model folders bring them: odd, broken, or with more tokens than the model."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_chat, load_model, load_tokenizer
from memfactory.model.options import ModelConfig
from memfactory.training import run_training
from memfactory.types import Message

QUESTION = "What is the code of Alice?"
# In the manner of multimodal models: it goes through the content's parts, and through the letters of a text.
PARTS = (
    "{% for message in messages %}{{ message['role'] }}: {% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def tokenizer(small_model_path: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelConfig(path=str(small_model_path)))


@pytest.fixture
def model_folder(small_model_path: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(small_model_path, folder)
    return folder


def read(chat: ChatFormat, *messages: Message) -> str:
    return chat.tokenizer.decode(list(chat.prompt_ids(messages)))


# What a template shows


def test_a_template_of_content_parts_shows_the_question(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = PARTS
    messages = (Message("system", "Be brief."), Message("user", QUESTION))
    assert read(ChatFormat(tokenizer), *messages) == f"system: Be brief.user: {QUESTION}assistant:"


@pytest.mark.parametrize(
    ("template", "role"),
    [
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "system"),
        ("{{ messages[0].content }}", "user"),
        ("{% for m in messages %}{{ m.content[:4] }}{% endfor %}", "system"),
        ("{{ messages | length }}", "system"),
    ],
)
def test_a_template_that_drops_a_message_is_refused(
    template: str, role: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=f"leaves out the content of the {role} message"):
        ChatFormat(tokenizer).prompt_ids([Message("system", "Be brief."), Message("user", QUESTION)])


def test_a_template_may_trim_and_drop_old_thoughts(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content.split('</think>')[-1] | trim }}|{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    messages = (Message("user", "  a  "), Message("assistant", "<think>b</think> c"), Message("user", "d"))
    assert read(ChatFormat(tokenizer), *messages) == "a|c|d|>"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for", "refuses a conversation with the roles user"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ nothing.there }}", "is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ '' }}" + "(" * 3, "leaves out"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "refuses a conversation"),
        ("{% include 'other' %}", "refuses a conversation"),
    ],
    ids=["syntax", "type", "undefined", "arithmetic", "refusal", "text", "nested", "include"],
)
def test_a_template_that_fails_is_told_in_words(template: str, words: str, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=words):
        ChatFormat(tokenizer).prompt_ids([Message("user", QUESTION)])


def test_of_several_templates_the_default_is_used(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = tokenizer.chat_template
    tokenizer.chat_template = {"tool_use": "{{ messages }} with tools", "default": plain}
    chat = ChatFormat(tokenizer)
    tokenizer.chat_template = plain
    assert chat.prompt_ids([Message("user", QUESTION)]) == ChatFormat(tokenizer).prompt_ids([Message("user", QUESTION)])


def test_several_templates_without_a_default_are_named(model_folder: Path) -> None:
    path = model_folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    templates = [{"name": "chat", "template": "{{ messages[0].content }}"}, {"name": "tool_use", "template": "x"}]
    path.write_text(json.dumps({**settings, "chat_template": templates}))
    (model_folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"several chat templates \(chat, tool_use\)"):
        load_chat(ModelConfig(path=str(model_folder)))


# Options of templates


@pytest.mark.parametrize("off", [False, "no", "off", 0, "0", "false", "False", "NO"])
def test_every_way_to_write_no_thinking_turns_it_off(off: object, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template += "{% if enable_thinking is defined and enable_thinking is false %}quiet{% endif %}"
    options = ModelConfig(template_options={"enable_thinking": off}).template_options
    assert read(ChatFormat(tokenizer, options), Message("user", QUESTION)).endswith("quiet")


@pytest.mark.parametrize("on", [True, "yes", "on", 1, "1", "true"])
def test_every_way_to_write_thinking_turns_it_on(on: object) -> None:
    assert ModelConfig(template_options={"enable_thinking": on}).template_options == {"enable_thinking": True}


@pytest.mark.parametrize("neither", ["maybe", 2, "", None])
def test_a_switch_is_true_or_false(neither: object) -> None:
    with pytest.raises(ValueError, match="enable_thinking is a switch"):
        ModelConfig(template_options={"enable_thinking": neither})


def test_other_template_options_stay_as_written() -> None:
    options = {"reasoning_effort": "no", "budget": 0, "date": "1"}
    assert ModelConfig(template_options=options).template_options == options


def test_an_option_that_the_template_ignores_is_told(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="memfactory"):
        ChatFormat(tokenizer, {"enable_thinking": False, "add_generation_prompts": True})
    assert "knows no enable_thinking, add_generation_prompts" in caplog.text


# Control tokens that are not marked special


@pytest.fixture
def steered(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """A tokenizer with tokens as Qwen3's, and one for a run of spaces as GPT-NeoX's."""
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>", "<tool_call>", "    ")])
    return ChatFormat(tokenizer)


@pytest.mark.parametrize("role", ["user", "system", "tool"])
@pytest.mark.parametrize("token", ["<think>", "</think>", "<tool_call>"])
def test_documents_cannot_write_control_tokens(role: str, token: str, steered: ChatFormat) -> None:
    text = f"Alice {token} seven"
    messages = (Message(role, text), Message("user", QUESTION))
    assert steered.tokenizer.get_vocab()[token] not in steered.prompt_ids(messages)
    assert text in read(steered, *messages)


def test_the_assistants_own_control_tokens_stay(steered: ChatFormat) -> None:
    messages = (Message("user", QUESTION), Message("assistant", "<tool_call>seven"), Message("user", "Go on."))
    assert steered.prompt_ids(messages).count(steered.tokenizer.get_vocab()["<tool_call>"]) == 1


def test_added_tokens_that_steer_nothing_stay(steered: ChatFormat) -> None:
    assert steered.tokenizer.get_vocab()["    "] in steered.prompt_ids([Message("user", "a    b")])


# Tokens that the model has no embedding for


def add_tokens(folder: Path, *tokens: str, pad: str | None = None) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    tokenizer.add_tokens(list(tokens))
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)


def test_tokens_without_embedding_are_read_as_text(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = load_model(ModelConfig(path=str(model_folder)), training=False).get_input_embeddings().num_embeddings
    add_tokens(model_folder, "<memory>", "note")
    with caplog.at_level(logging.WARNING, logger="memfactory"):
        chat = load_chat(ModelConfig(path=str(model_folder)))
    assert "no embeddings for '<memory>', 'note'" in caplog.text
    assert chat.vocab_size == rows
    ids = chat.prompt_ids([Message("user", "a <memory> of a note")])
    assert max(ids) < rows and "a <memory> of a note" in chat.tokenizer.decode(list(ids))


def test_a_template_that_writes_such_a_token_is_refused(model_folder: Path, tmp_path: Path) -> None:
    add_tokens(model_folder, "<memory>")
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}<memory>{{ m.content }}{% endfor %}")
    chat = load_chat(ModelConfig(path=str(model_folder), chat_template=str(template)))
    with pytest.raises(ConfigError, match="writes '<memory>', for which the model has no embedding"):
        chat.prompt_ids([Message("user", QUESTION)])


def test_the_tokenizer_of_another_model_is_refused(model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(ConfigError, match="belongs to another model"):
        load_chat(ModelConfig(path=str(model_folder)))


@pytest.mark.parametrize("share", ["true", "false"])
def test_a_padding_token_without_embedding_trains(share: str, model_folder: Path, tmp_path: Path) -> None:
    add_tokens(model_folder, pad="[PAD]")
    chat = load_chat(ModelConfig(path=str(model_folder)))
    assert chat.pad_id in chat.stop_ids
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {{path: {model_folder}, cpu_threads: 1}}\n"
        "agent: {name: memory_agent, chunk_tokens: 64, memory_tokens: 6, answer_tokens: 6}\n"
        "env: {name: longcontext, rewards: {f1: 1.0}}\n"
        "data: {train: {name: facts, rows: 4}}\n"
        "train: {name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, eval_at_end: false}\n"
        f"engine: {{kind: hf, share_prefixes: {share}}}\n"
        "trackers: []\n",
        encoding="utf-8",
    )
    run_training(load_config(config, overrides=[f"output={tmp_path / 'run'}"], command="train"))
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


# Folders that are broken

BROKEN = {
    "end tokens as a list": ("tokenizer_config.json", lambda s: {**json.loads(s), "eos_token": ["<a>"]}),
    "settings that are a list": ("tokenizer_config.json", lambda s: []),
    "extra tokens of the wrong shape": (
        "tokenizer_config.json",
        lambda s: {**json.loads(s), "extra_special_tokens": {"image_token": {"content": 7}}},
    ),
    "a tokenizer without a model": ("tokenizer.json", lambda s: {"version": "1.0"}),
    "a tokenizer cut short": ("tokenizer.json", lambda s: s[: len(s) // 2]),
    "a pointer": ("tokenizer.json", lambda s: "version https://git-lfs.github.com/spec/v1\n"),
    "end ids of the wrong type": ("generation_config.json", lambda s: {"eos_token_id": {"a": 1}}),
    "a config without a type": ("config.json", lambda s: {}),
    "a config of an unknown type": ("config.json", lambda s: {**json.loads(s), "model_type": "new"}),
    "a config that is a list": ("config.json", lambda s: []),
    "a config nested too deep": ("config.json", lambda s: "[" * 100_000),
    "a config with text for sizes": ("config.json", lambda s: {**json.loads(s), "hidden_size": "wide"}),
    "a config with heads that do not divide": ("config.json", lambda s: {**json.loads(s), "num_key_value_heads": 0}),
    "weights cut short": ("model.safetensors", lambda s: "short"),
    "weights that are a pointer": ("model.safetensors", lambda s: "version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_folder_is_told_in_words(case: str, model_folder: Path) -> None:
    name, change = BROKEN[case]
    path = model_folder / name
    changed = change(path.read_bytes().decode("latin-1") if path.is_file() else "{}")
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed), encoding="utf-8")
    config = ModelConfig(path=str(model_folder))
    with pytest.raises(ConfigError, match="Git LFS pointer" if "pointer" in case else r"model\.path"):
        load_chat(config)
        load_model(config, training=False)


def test_a_chat_template_that_is_no_text_is_told(model_folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"model\.chat_template.*cannot be read"):
        load_chat(ModelConfig(path=str(model_folder), chat_template=str(template)))
