"""Models and tokenizers from their configuration, and what is said when they are not there."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save

from memfactory.errors import ConfigError
from memfactory.model import loading
from memfactory.model.loading import (
    compute_dtype,
    load_chat,
    load_model,
    load_tokenizer,
    resolve_attention,
    resolve_device,
)
from memfactory.model.options import ModelConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
IDS = torch.tensor([[5, 6, 7, 8]])


def config_of(path: Path, **options: object) -> ModelConfig:
    return ModelConfig.model_validate({"path": str(path), **options})


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def adapter_path(small_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = load_model(config_of(small_model_path), training=False)
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).save_pretrained(folder)
    return folder


def test_a_model_and_its_chat_format_come_from_a_local_folder(small_model_path: Path):
    model = load_model(config_of(small_model_path), training=False)
    assert not model.training and model.dtype == torch.float32 and model.device.type == "cpu"
    assert model.config._attn_implementation == "sdpa"
    assert load_chat(config_of(small_model_path)).vocab_size == model.config.vocab_size


def test_auto_is_bfloat16_on_cuda_and_float32_elsewhere():
    assert compute_dtype(ModelConfig(), CPU) == torch.float32
    assert compute_dtype(ModelConfig(), CUDA) == torch.bfloat16
    assert compute_dtype(ModelConfig(dtype="float16"), CPU) == torch.float16


def test_trained_weights_are_float32_and_a_frozen_base_is_not(small_model_path: Path):
    config = config_of(small_model_path, dtype="bfloat16")
    assert load_model(config, training=False).dtype == torch.bfloat16
    assert load_model(config, training=True).dtype == torch.float32
    assert load_model(config, training=True, frozen_base=True).dtype == torch.bfloat16


def test_random_weights_need_no_weights_and_are_the_same_each_time(small_model_path: Path, tmp_path: Path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(small_model_path / name, tmp_path / name)
    config = config_of(tmp_path, random_weights=True)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = load_model(config, training=False), load_model(config, training=False)
    assert torch.equal(logits(first), logits(second))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert load_chat(config).vocab_size == first.config.vocab_size
    with pytest.raises(ConfigError, match="does not hold a usable model"):
        load_model(config_of(tmp_path), training=False)


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_a_rotary_embedding_that_changes_with_the_length_is_told_of(small_model_path, tmp_path, caplog, kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, **({"factor": 2.0} if kind == "dynamic" else {})}
    description = json.loads((small_model_path / "config.json").read_text()) | {"rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(description))
    with caplog.at_level(logging.WARNING, "memfactory"):
        load_model(config_of(tmp_path, random_weights=True), training=False)
    expected = "its rotary embedding is 'dynamic'. Beyond 2,048 tokens"
    assert (expected in caplog.text) == (kind == "dynamic")


def test_an_adapter_is_merged_except_for_training(small_model_path: Path, adapter_path: Path):
    config = config_of(small_model_path, adapter=str(adapter_path))
    merged, adapted = load_model(config, training=False), load_model(config, training=True)
    assert not isinstance(merged, PeftModel) and isinstance(adapted, PeftModel)
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-5)
    assert not torch.allclose(logits(merged), logits(load_model(config_of(small_model_path), training=False)), atol=0.1)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)


def test_an_adapter_folder_is_a_model_on_the_base_that_it_names(small_model_path: Path, adapter_path: Path):
    named = load_model(config_of(small_model_path, adapter=str(adapter_path)), training=False)
    assert torch.equal(logits(load_model(config_of(adapter_path), training=False)), logits(named))
    assert load_chat(config_of(adapter_path)).vocab_size == named.config.vocab_size


def test_a_chat_template_file_replaces_the_tokenizers_own(small_model_path: Path, tmp_path: Path):
    template = tmp_path / "mine.jinja"
    template.write_text("mine")
    assert load_tokenizer(config_of(small_model_path, chat_template=str(template))).chat_template == "mine"
    with pytest.raises(ConfigError, match=r"model\.chat_template: there is no file '.*other\.jinja'"):
        load_tokenizer(config_of(small_model_path, chat_template=str(tmp_path / "other.jinja")))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere", "runs/a/final", "nowhere/"])
def test_a_folder_that_is_not_there_is_named(path):
    for load in (load_tokenizer, load_chat, lambda config: load_model(config, training=False)):
        with pytest.raises(ConfigError, match=f"model.path: there is no folder '{path}'"):
            load(ModelConfig(path=path))


def test_an_unreachable_hub_id_is_said_to_be_no_folder_either():
    words = "'nobody/nothing' is not a local folder, and as a hub id its (model|tokenizer) cannot be fetched"
    with pytest.raises(ConfigError, match=words):
        load_model(ModelConfig(path="nobody/nothing"), training=False)
    with pytest.raises(ConfigError, match=words):
        load_tokenizer(ModelConfig(path="nobody/nothing"))


def test_a_folder_without_a_model_or_with_a_broken_one_is_named(tmp_path: Path, small_model_path: Path):
    with pytest.raises(ConfigError, match="does not hold a usable model"):
        load_model(config_of(tmp_path), training=False)
    with pytest.raises(ConfigError, match="does not hold a usable tokenizer"):
        load_tokenizer(config_of(tmp_path))
    weights = load_file(small_model_path / "model.safetensors")
    without_norm = save({name: weight for name, weight in weights.items() if name != "model.norm.weight"})
    shorter = save({name: weight[:-1] if name == "model.norm.weight" else weight for name, weight in weights.items()})
    for number, (name, content, words) in enumerate(
        [
            ("config.json", b"{", ""),
            ("model.safetensors", b"none", ""),
            ("model.safetensors", without_norm, r"its weights lack model\.norm\.weight"),
            ("model.safetensors", shorter, ""),
        ]
    ):
        broken = tmp_path / str(number)
        shutil.copytree(small_model_path, broken)
        (broken / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"does not hold a usable model: .*{words}"):
            load_model(config_of(broken), training=False)


def test_an_adapter_that_is_not_there_or_does_not_fit_is_named(small_model_path: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"model\.adapter: there is no folder './nowhere'"):
        load_model(config_of(small_model_path, adapter="./nowhere"), training=False)
    with pytest.raises(ConfigError, match=r"model\.adapter: .* cannot be loaded as a PEFT adapter"):
        load_model(config_of(small_model_path, adapter=str(tmp_path)), training=False)


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="'gpu' is not a device; write auto, cpu, cuda"):
        resolve_device("gpu")
    assert resolve_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert resolve_device("auto") == CPU
        with pytest.raises(ConfigError, match="'cuda' was asked for, but there is no CUDA device"):
            resolve_device("cuda")


def test_flash_attention_says_what_it_lacks():
    flash = ModelConfig(attention="flash_attention_2")
    assert resolve_attention(ModelConfig(), CPU) == "sdpa"
    assert resolve_attention(ModelConfig(attention="eager"), CPU) == "eager"
    with pytest.raises(ConfigError, match=r"needs a CUDA device, but the device is cpu; model\.dtype bfloat16"):
        resolve_attention(flash, CPU)
    with pytest.raises(ConfigError, match=r"needs model\.dtype bfloat16 or float16, not float32"):
        resolve_attention(flash.model_copy(update={"dtype": "float32"}), CUDA)


def test_a_gpu_receives_each_tensor_as_it_is_read(monkeypatch, small_model_path: Path):
    maps, load = [], loading.AutoModelForCausalLM.from_pretrained

    def on_the_host(path, *, device_map=None, **options):
        maps.append(device_map)
        return load(path, device_map=None if device_map is None else {"": torch.device("cpu")}, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", on_the_host)
    options = {"dtype": torch.float32}
    gpu = torch.device("cuda", 1)
    placed, plain = (
        loading._stored_model(str(small_model_path), options, place) for place in (gpu, torch.device("cpu"))
    )
    assert maps == [{"": gpu}, None]
    assert not any(hasattr(module, "_hf_hook") for module in placed.modules())
    expected = plain.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in placed.state_dict().items())
