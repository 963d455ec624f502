"""Adapters of every kind: what is trained is what is loaded, handed over and evaluated, or is refused."""

import json
import shutil
import warnings
from copy import deepcopy
from pathlib import Path

import peft
import pytest
import torch
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    CPTConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VBLoRAConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from memfactory.config import load_config
from memfactory.engines.options import VllmEngineConfig
from memfactory.errors import ConfigError
from memfactory.model.adapters import base_model, copy_in_type, merged_weights
from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.weights import check_engine, save_weights
from memfactory.training import run_training
from small_gguf import write_llama

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
ATTENTION = ["q_proj", "v_proj"]
KINDS = {
    "lora": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "rslora": LoraConfig(r=4, lora_alpha=16, target_modules=ATTENTION, use_rslora=True, task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=4, target_modules=ATTENTION, use_dora=True, task_type="CAUSAL_LM"),
    "biases": LoraConfig(r=4, target_modules=ATTENTION, bias="all", task_type="CAUSAL_LM"),
    "embedding": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"),
    "head": LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"),
    "both": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"], task_type="CAUSAL_LM"),
    "whole_head": LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "whole_both": LoraConfig(
        r=4, target_modules=ATTENTION, modules_to_save=["lm_head", "embed_tokens"], task_type="CAUSAL_LM"
    ),
    "tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6], task_type="CAUSAL_LM"),
    "ia3": IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "adalora": AdaLoraConfig(target_modules=ATTENTION, total_step=10, task_type="CAUSAL_LM"),
    "common bank": VBLoRAConfig(
        target_modules=ATTENTION, vector_length=4, num_vectors=16, topk=2, task_type="CAUSAL_LM"
    ),
}


@pytest.fixture(scope="module")
def adapters(small_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one adapter of each kind, far enough from its start to matter."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, config in KINDS.items():
        torch.manual_seed(0)
        base = load_model(ModelConfig(path=str(small_model_path)), training=False)
        network = get_peft_model(base, config)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        save_weights(network, folder / name, torch.float32)
        shutil.copy(small_model_path / "tokenizer.json", folder / name)
    return folder


def logprobs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits[0].log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_what_is_evaluated(kind: str, adapters: Path) -> None:
    config = ModelConfig(path=str(adapters / kind))
    trained = load_model(config, training=True)
    expected = logprobs(trained)
    with trained.disable_adapter():
        assert (logprobs(trained) - expected).abs().max() > 1e-3  # the adapter does something
    assert torch.allclose(logprobs(load_model(config, training=False)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_handed_over_is_what_is_trained(kind: str, adapters: Path) -> None:
    config = ModelConfig(path=str(adapters / kind))
    trained = load_model(config, training=True)
    before = logprobs(trained)
    handed = dict(merged_weights(trained, torch.float32))
    merged = load_model(config, training=False)
    assert set(dict(merged.named_parameters())) <= set(handed)
    for name, value in merged.named_parameters():
        assert torch.allclose(handed[name], value, atol=1e-6), name
    # Handing over leaves the network as it was.
    assert torch.equal(logprobs(trained), before)


@pytest.mark.parametrize("kind", ["lora", "dora", "embedding", "head", "whole_head", "tokens"])
def test_a_copy_for_sampling_computes_as_the_adapters_do(kind: str, adapters: Path) -> None:
    model = base_model(load_model(ModelConfig(path=str(adapters / kind), dtype="float32", device="cpu"), training=True))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        expected = model(IDS).logits
        torch.testing.assert_close(copy_in_type(model, torch.float32)(IDS).logits, expected, rtol=0, atol=1e-5)
        half = copy_in_type(model, torch.bfloat16)
        torch.testing.assert_close(half(IDS).logits.float(), expected, rtol=0.1, atol=0.1)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert not any("lora" in name or "base_layer" in name for name, _ in half.named_parameters())
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


def test_a_copy_shares_the_weights_that_are_in_its_type_already(small_model_path: Path) -> None:
    model = load_model(ModelConfig(path=str(small_model_path), dtype="bfloat16", device="cpu"), training=False)
    adapted = get_peft_model(model, KINDS["lora"])
    embedding = adapted.get_base_model().get_input_embeddings()
    copy = copy_in_type(adapted.get_base_model(), torch.bfloat16)
    assert copy.get_input_embeddings().weight is embedding.weight is copy.get_output_embeddings().weight
    wide = copy_in_type(adapted.get_base_model(), torch.float32)
    assert wide.get_input_embeddings().weight is wide.get_output_embeddings().weight is not embedding.weight
    wide.set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"biases"}))
def test_the_base_is_handed_over_without_adapters(kind: str, adapters: Path, small_model_path: Path) -> None:
    trained = load_model(ModelConfig(path=str(adapters / kind)), training=True)
    handed = dict(merged_weights(trained, torch.float32, adapters=False))
    for name, value in load_model(ModelConfig(path=str(small_model_path)), training=False).named_parameters():
        assert torch.equal(handed[name], value), name


@pytest.mark.parametrize("kind", ["embedding", "head", "both", "whole_head", "whole_both"])
@pytest.mark.parametrize("mode", ["lora", "merged"])
def test_vllm_refuses_what_splits_a_tied_weight(kind: str, mode: str, adapters: Path) -> None:
    trained = load_model(ModelConfig(path=str(adapters / kind)), training=True)
    with pytest.raises(ConfigError, match="as one weight"):
        check_engine(trained, VllmEngineConfig(adapter=mode))


@pytest.mark.parametrize(("kind", "reason"), [("dora", "use_dora"), ("biases", "biases"), ("ia3", "IA3")])
def test_vllm_takes_only_plain_adapters_alone(kind: str, reason: str, adapters: Path) -> None:
    trained = load_model(ModelConfig(path=str(adapters / kind)), training=True)
    with pytest.raises(ConfigError, match=rf"{reason}.*engine.adapter: merged"):
        check_engine(trained, VllmEngineConfig())
    check_engine(trained, VllmEngineConfig(adapter="merged"))


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_vllm_takes_plain_adapters(kind: str, adapters: Path) -> None:
    check_engine(load_model(ModelConfig(path=str(adapters / kind)), training=True), VllmEngineConfig())


def test_adapters_have_no_empty_model_card(adapters: Path) -> None:
    assert not list(adapters.glob("*/README.md"))


@pytest.mark.parametrize("training", [True, False])
def test_foreign_tensor_names_are_refused(training: bool, adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(adapters / "lora", folder)
    file = folder / "adapter_model.safetensors"
    save_file({f"other.{name}": value for name, value in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match="made for another model"):
        load_model(ModelConfig(path=str(folder)), training=training)


def test_one_missing_tensor_is_refused(adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(adapters / "lora", folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)
    with pytest.raises(ConfigError, match="lacks 1 tensors"):
        load_model(ModelConfig(path=str(folder)), training=False)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[1, 2], cpt_tokens_type_mask=[1, 1]),
    ],
    ids=["prompt", "prefix", "context"],
)
@pytest.mark.parametrize("training", [True, False])
def test_adapters_of_prompts_are_refused(
    config: object, training: bool, small_model_path: Path, tmp_path: Path
) -> None:
    base = load_model(ModelConfig(path=str(small_model_path)), training=False)
    get_peft_model(base, config).save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="changes the prompt"):
        load_model(ModelConfig(path=str(tmp_path)), training=training)


UNMERGED = [(AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=1), "ADAPTION_PROMPT")]
if hasattr(peft, "LilyConfig"):  # Of later versions of peft.
    UNMERGED.append((peft.LilyConfig(task_type="CAUSAL_LM", target_modules=ATTENTION), "LILY.* not supported for Lily"))


@pytest.mark.parametrize(("config", "reason"), UNMERGED)
@pytest.mark.parametrize("training", [True, False])
def test_adapters_that_cannot_be_merged_are_refused(
    config: object, reason: str, training: bool, small_model_path: Path, tmp_path: Path
) -> None:
    write_llama(tmp_path / "base", small_model_path)
    base = load_model(ModelConfig(path=str(tmp_path / "base")), training=False)
    get_peft_model(base, deepcopy(config)).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ConfigError, match=f"is of the kind {reason}"):
        load_model(ModelConfig(path=str(tmp_path / "adapter")), training=training)


BROKEN = {
    "unknown kind": ("adapter_config.json", lambda text: json.dumps({**json.loads(text), "peft_type": "NEW"}), "NEW"),
    "no kind": ("adapter_config.json", lambda text: text.replace('"peft_type"', '"x"'), "peft_type None"),
    "no JSON": ("adapter_config.json", lambda text: text[:-3], "cannot be read"),
    "nested": ("adapter_config.json", lambda text: "[" * 100_000, "cannot be read"),
    "a list": ("adapter_config.json", lambda text: "[]", "cannot be read|peft_type None"),
    "another rank": ("adapter_config.json", lambda text: json.dumps({**json.loads(text), "r": 8}), "size mismatch"),
    "a pointer": ("adapter_model.safetensors", lambda text: "version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "cut short": ("adapter_model.safetensors", lambda text: "short", "cannot be loaded"),
    "base that is gone": (
        "adapter_config.json",
        lambda text: json.dumps({**json.loads(text), "base_model_name_or_path": "/gone/base"}),
        "is for the model in '/gone/base'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_told_in_words(case: str, adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(adapters / "lora", folder)
    name, change, words = BROKEN[case]
    text = (folder / name).read_bytes().decode("latin-1")
    (folder / name).write_text(change(text), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load_model(ModelConfig(path=str(folder)), training=False)


def test_an_adapter_without_weights_asks_no_hub(adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(adapters / "lora", folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no adapter_model\.safetensors"):
        load_model(ModelConfig(path=str(folder)), training=False)


@pytest.mark.parametrize("targets", ["[q_proj, embed_tokens]", "[q_proj, lm_head]"])
def test_training_a_tied_end_warns_of_nothing_and_loads(targets: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {path: tiny, dtype: float32, cpu_threads: 1}\n"
        "agent: {name: memory_agent, chunk_tokens: 64, memory_tokens: 12, answer_tokens: 8}\n"
        "env: {name: longcontext, rewards: {f1: 1.0}}\n"
        "data: {train: {name: facts, rows: 8}}\n"
        f"train: {{name: grpo, steps: 2, prompts_per_step: 2, group_size: 2, lora: {{rank: 4, "
        f"target_modules: {targets}}}, optimizer: {{learning_rate: 0.02}}}}\n"
        "trackers: []\n",
        encoding="utf-8",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", UserWarning)
        run_training(load_config(config, overrides=[f"output={tmp_path / 'run'}"], command="train"))
    final = ModelConfig(path=str(tmp_path / "run" / "final"), dtype="float32")
    trained, evaluated = (logprobs(load_model(final, training=training)) for training in (True, False))
    assert torch.allclose(trained, evaluated, atol=1e-5)
