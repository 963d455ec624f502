"""Small GGUF files for tests, written from a plain folder as llama.cpp's converter would write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from small_sizes import small_sizes

TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def write_llama(folder: Path, tokenizer_from: Path) -> None:
    """A random Llama of two layers of 64, with the tokenizer of another folder."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**small_sizes(tokenizer), rms_norm_eps=1e-5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def write_gguf(
    folder: Path,
    file: Path,
    kind: str = "F32",
    architecture: str = "llama",
    more: Callable[[gguf.GGUFWriter], object] = str,
) -> Path:
    """The Llama of `folder` as a GGUF file, its matrices in the type `kind`; `folder` then has the rounded weights.

    `more` adds values of its own to the file.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_name("small")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _write_tokenizer(writer, folder)
    more(writer)
    _write_weights(writer, folder, config, TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    special = set(tokenizer.all_special_ids) | {token["id"] for token in described["added_tokens"]}
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def _write_weights(writer: gguf.GGUFWriter, folder: Path, config: dict, kind: gguf.GGMLQuantizationType) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    rounded: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.float().numpy()
        # llama.cpp rotates neighbouring dimensions, transformers the two halves.
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(
            name.split(".")[-2]
        )
        values = values if heads is None else _neighbours(values, heads)
        matrix = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        stored = quantize(values, matrix)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored, raw_dtype=matrix)
        values = numpy.ascontiguousarray(dequantize(stored, matrix), dtype=numpy.float32)
        rounded[name] = torch.from_numpy(values if heads is None else _halves(values, heads))
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def _neighbours(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    rows, columns = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, columns)
    return numpy.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _halves(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return numpy.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
