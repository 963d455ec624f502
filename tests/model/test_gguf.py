"""Models in GGUF files: the same as the plain folder that they were written from, and clear errors for broken ones."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import sys
from pathlib import Path

import gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from memfactory.errors import ConfigError
from memfactory.model.codec import FileCodec
from memfactory.model.gguf_file import gguf_header, gguf_problem, is_gguf
from memfactory.model.loading import load_architecture, load_chat, load_model, load_tokenizer, places
from memfactory.model.model_files import weights_fingerprint
from memfactory.model.options import ModelConfig
from memfactory.types import Message
from small_gguf import TYPES, write_gguf, write_llama

IDS = torch.tensor([[5, 60, 7, 200, 31]])


def config_of(path: Path, **options: object) -> ModelConfig:
    return ModelConfig.model_validate({"path": str(path), **options})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def saved(folder: Path, model: torch.nn.Module, file: Path) -> Path:
    model.save_pretrained(folder)
    load_tokenizer(config_of(file)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", TYPES)
def test_a_gguf_file_gives_the_logits_of_its_plain_folder(small_model_path: Path, tmp_path: Path, kind: str):
    write_llama(tmp_path / "plain", small_model_path)
    file = write_gguf(tmp_path / "plain", tmp_path / "small.gguf", kind)
    expected = logits(load_model(config_of(tmp_path / "plain"), training=False))
    assert torch.equal(logits(load_model(config_of(file), training=False)), expected)


def test_its_tokenizer_and_template_give_the_same_prompts(small_gguf_path: Path):
    chat, plain = load_chat(config_of(small_gguf_path)), load_chat(config_of(small_gguf_path.parent / "plain"))
    messages = [Message("user", "What is the code of Alice? Say <|im_end|> 12 times: é"), Message("assistant", "7\n")]
    assert chat.prompt_ids(messages) == plain.prompt_ids(messages)
    assert (chat.stop_ids, chat.vocab_size) == (plain.stop_ids, plain.vocab_size)
    assert chat.tokenizer.name_or_path == str(small_gguf_path)


def test_every_end_token_of_the_file_ends_a_reply(small_gguf_path: Path, tmp_path: Path):
    # Token 0 is <|endoftext|>, 2 is <|im_end|>: the file names 2 as its end, and here 0 as the end of a turn as well.
    shutil.copytree(small_gguf_path.parent / "plain", tmp_path / "plain")
    file = write_gguf(tmp_path / "plain", tmp_path / "ends.gguf", more=lambda writer: writer.add_eot_token_id(0))
    assert load_chat(config_of(small_gguf_path)).stop_ids == {2}
    assert load_chat(config_of(file)).stop_ids == {0, 2}


def test_weights_have_the_type_of_the_config(small_gguf_path: Path):
    config = config_of(small_gguf_path, dtype="bfloat16")
    assert load_model(config, training=False).dtype == torch.bfloat16
    assert load_model(config, training=True).dtype == torch.float32
    assert load_model(config, training=True, frozen_base=True).dtype == torch.bfloat16


def test_the_loaded_model_is_plain_and_can_be_saved(small_gguf_path: Path, tmp_path: Path):
    model = load_model(config_of(small_gguf_path), training=True)
    assert "quantization_config" not in model.config.to_dict()
    folder = saved(tmp_path / "saved", model, small_gguf_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(model))
    again = AutoTokenizer.from_pretrained(folder)
    assert again.chat_template == load_tokenizer(config_of(small_gguf_path)).chat_template
    assert "gguf" not in (folder / "tokenizer_config.json").read_text()


def test_an_adapter_on_a_gguf_base_names_the_file(small_gguf_path: Path, tmp_path: Path):
    model = load_model(config_of(small_gguf_path), training=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(small_gguf_path)
    assert places(config_of(tmp_path)) == (str(small_gguf_path), str(tmp_path))
    expected = logits(adapted)
    for config in (config_of(tmp_path), config_of(small_gguf_path, adapter=str(tmp_path))):
        assert torch.allclose(logits(load_model(config, training=False)), expected, atol=1e-5)


def test_random_weights_take_the_architecture_of_the_file(small_gguf_path: Path):
    config = config_of(small_gguf_path, random_weights=True)
    first, second = load_model(config, training=False), load_model(config, training=False)
    assert torch.equal(logits(first), logits(second)) and first.config.num_hidden_layers == 2
    assert not torch.equal(logits(first), logits(load_model(config_of(small_gguf_path), training=False)))


def test_files_beside_it_do_not_count(small_gguf_path: Path, tmp_path: Path):
    file = tmp_path / "a model.GGUF"
    shutil.copy(small_gguf_path, file)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"):
        (tmp_path / name).write_text('{"peft_type": "NONSENSE", "eos_token": "<|endoftext|>", "model_type": "bert"}')
    (tmp_path / "chat_template.jinja").write_text("nothing")
    expected = logits(load_model(config_of(small_gguf_path), training=False))
    assert torch.equal(logits(load_model(config_of(file), training=False)), expected)
    assert load_chat(config_of(file)).stop_ids == load_chat(config_of(small_gguf_path)).stop_ids
    assert load_tokenizer(config_of(file)).chat_template != "nothing"


def test_no_progress_bar_and_no_warning_of_a_library_is_shown(small_gguf_path: Path, tmp_path: Path, capfd):
    # A copy, so that nothing is remembered of it.
    file = Path(shutil.copy(small_gguf_path, tmp_path / "copy.gguf"))
    load_chat(config_of(file))
    load_model(config_of(file), training=True)
    assert capfd.readouterr() == ("", "")


def test_its_fingerprint_is_that_of_the_file(small_gguf_path: Path, tmp_path: Path):
    file = Path(shutil.copy(small_gguf_path, tmp_path / "copy.gguf"))
    (before,) = weights_fingerprint(config_of(file)).values()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (after,) = weights_fingerprint(config_of(file)).values()
    assert [before] == list(weights_fingerprint(config_of(small_gguf_path)).values()) and before != after


def test_its_tokenizer_measures_texts_for_an_endpoint(small_gguf_path: Path, tmp_path: Path):
    plain = FileCodec(str(small_gguf_path.parent / "plain"))
    assert FileCodec(str(small_gguf_path)).offsets("The code of Alice is seven.") == plain.offsets(
        "The code of Alice is seven."
    )
    with pytest.raises(ConfigError, match=r"there is no file '.*none\.gguf'"):
        FileCodec(str(tmp_path / "none.gguf"))


def test_a_file_that_was_cut_short_is_refused_wherever_the_cut_is(small_gguf_path: Path, tmp_path: Path):
    content = small_gguf_path.read_bytes()
    assert gguf_header(small_gguf_path).size == len(content)
    file = tmp_path / "cut.gguf"
    for length in [0, 3, 4, 23, 24, 100, 1000, 5000, 9000, len(content) // 2, len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(ConfigError, match=r"model\.path: '.*cut\.gguf' (is|was) ") as raised:
            load_model(config_of(file), training=False)
        assert "\n" not in str(raised.value)


# One value, a list of a list of a list and so on: type 9 and length 1 each.
LISTS_IN_LISTS = b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"x", 9) + struct.pack("<IQ", 9, 1) * 100_000


def test_what_is_no_gguf_file_is_named(small_gguf_path: Path, tmp_path: Path):
    content = small_gguf_path.read_bytes()
    for name, written, words in [
        ("zip.gguf", b"PK\3\4" + content[4:], r"is no GGUF file: it begins with b'PK\\x03\\x04'"),
        ("pointer.gguf", b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        ("model.safetensors", content[:4][::-1] + content[4:], "is no GGUF file"),
        ("old.gguf", content[:4] + struct.pack("<I", 1) + content[8:], "is a GGUF file of version 1; versions 2 and 3"),
        ("big.gguf", content[:4] + struct.pack(">I", 3) + content[8:], "is a GGUF file of version 50331648"),
        ("many.gguf", content[:8] + struct.pack("<Q", 2**63) + content[16:], "is damaged or was cut short"),
        ("deep.gguf", LISTS_IN_LISTS, "is damaged or was cut short"),
        ("x-00001-of-00003.gguf", content, "is one of 3 parts of a model; join them"),
    ]:
        (tmp_path / name).write_bytes(written)
        with pytest.raises(ConfigError, match=rf"model\.path: '.*{name}' {words}"):
            load_tokenizer(config_of(tmp_path / name))


@pytest.mark.parametrize("path", ["models/none.gguf", "none.gguf", "~/none.gguf", "/nowhere/none.GGUF"])
def test_a_gguf_file_that_is_not_there_is_no_hub_id(path: str):
    with pytest.raises(ConfigError, match=r"model\.path: there is no file '.*/?none\.(gguf|GGUF)'"):
        load_model(ModelConfig(path=path), training=False)


def test_an_architecture_that_transformers_lacks_is_named(small_gguf_path: Path, tmp_path: Path):
    shutil.copytree(small_gguf_path.parent / "plain", tmp_path / "plain")
    file = write_gguf(tmp_path / "plain", tmp_path / "strange.gguf", architecture="rwkv6")
    for load in (load_architecture, load_tokenizer, lambda config: load_model(config, training=False)):
        with pytest.raises(ConfigError, match=r"the GGUF file '.*strange\.gguf' does not hold a usable .*rwkv6"):
            load(config_of(file))


def test_a_folder_of_gguf_files_says_how_to_name_one(small_gguf_path: Path, tmp_path: Path):
    for name in ("q4.gguf", "q8.gguf"):
        shutil.copy(small_gguf_path, tmp_path / name)
    with pytest.raises(ConfigError, match=r"GGUF files \(q4\.gguf, q8\.gguf\); name one of them, such as '.*q4\.gguf'"):
        load_model(config_of(tmp_path), training=False)


def test_without_the_package_gguf_the_extra_is_named(small_gguf_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"needs an extra that is not installed: pip install 'memfactory\[gguf\]'"):
        load_model(config_of(small_gguf_path), training=False)


def test_a_scaled_rotation_that_is_not_read_is_told_of(small_gguf_path: Path, tmp_path: Path, caplog):
    shutil.copytree(small_gguf_path.parent / "plain", tmp_path / "plain")
    yarn = gguf.RopeScalingType.YARN
    file = write_gguf(
        tmp_path / "plain", tmp_path / "yarn.gguf", more=lambda writer: writer.add_rope_scaling_type(yarn)
    )
    with caplog.at_level(logging.WARNING, "memfactory"):
        load_model(config_of(small_gguf_path), training=False)
        assert not caplog.records
        load_model(config_of(file), training=False)
    assert "the GGUF file scales the rotary embedding, which transformers does not read" in caplog.text


def test_a_gguf_file_is_known_by_its_name_or_its_first_bytes(small_gguf_path: Path, tmp_path: Path):
    nameless = Path(shutil.copy(small_gguf_path, tmp_path / "sha256-1234"))
    assert is_gguf(nameless) and is_gguf("anything.gguf") and not is_gguf(tmp_path) and not is_gguf("owner/name")
    assert not is_gguf("~nobody-of-this-name/x.gguf") and not is_gguf("a\0b")
    assert gguf_problem(nameless) is None
    assert gguf_header(nameless).architecture == "llama"
    assert load_model(config_of(nameless), training=False).config.hidden_size == 64
