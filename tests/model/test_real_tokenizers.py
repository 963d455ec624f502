"""Real tokenizers in folders as users have them: odd settings, templates of their own, tokens without an embedding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from memfactory.errors import ConfigError
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_chat, load_tokenizer
from memfactory.model.options import ModelConfig
from memfactory.types import Message
from real_models import real_model

NAMES = ["smollm2", "qwen3-tokenizer"]
MESSAGES = (Message("system", "Be brief."), Message("user", "What is the code of Alice?"))
PARTS = (
    "{% for m in messages %}{{ m.role }}: "
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}; "
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
SETTINGS = {
    "end tokens as a list": ({"eos_token": ["<a>"]}, "does not hold a usable tokenizer: TypeError: .*eos_token"),
    "extra tokens of the wrong shape": (
        {"extra_special_tokens": {"image_token": {"content": 7}}},
        "does not hold a usable tokenizer",
    ),
    "templates without a default": (
        {"chat_template": [{"name": "chat", "template": "x"}, {"name": "tool_use", "template": "y"}]},
        r"several chat templates \(chat, tool_use\), none of them the default",
    ),
}


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a real tokenizer's folder without weights."""
    for file in real_model(request.param).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path / file.name)
    return tmp_path


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_fit_are_told_in_words(case: str, folder: Path) -> None:
    values, words = SETTINGS[case]
    if "chat_template" in values:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ConfigError, match=words):
        load_chat(ModelConfig(path=str(folder)))


def test_a_template_of_content_parts_shows_every_message(folder: Path) -> None:
    (folder / "parts.jinja").write_text(PARTS)
    chat = load_chat(ModelConfig(path=str(folder), chat_template=str(folder / "parts.jinja")))
    text = chat.decode(chat.prompt_ids(MESSAGES))
    assert text == "system: Be brief.; user: What is the code of Alice?; assistant: "


def test_a_token_without_an_embedding_is_read_as_letters(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<memory>"])
    tokenizer.save_pretrained(folder)
    # The model's rows are those of the tokenizer before; a padded model such as Qwen3's would have room.
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
    chat = load_chat(ModelConfig(path=str(folder)))
    assert chat.vocab_size == rows and "'<memory>'" in caplog.text
    ids = chat.prompt_ids([Message("user", "a <memory> of Alice")])
    assert max(ids) < rows and "a <memory> of Alice" in chat.decode(ids)


@pytest.fixture(scope="module")
def qwen3() -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelConfig(path=str(real_model("qwen3-tokenizer"))))


@pytest.mark.parametrize("off", [False, "no", "off", 0, "false"])
def test_every_way_to_write_no_thinking_closes_qwen3s_block(off: object, qwen3: PreTrainedTokenizerBase) -> None:
    options = ModelConfig(template_options={"enable_thinking": off}).template_options
    assert ChatFormat(qwen3, options).prompt_ids(MESSAGES)[-4:] == (151667, 271, 151668, 271)
