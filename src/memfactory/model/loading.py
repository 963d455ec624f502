"""Model and tokenizer from a `ModelConfig`: their place, device, compute type and attention."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from memfactory.errors import ConfigError, in_one_line
from memfactory.files.assets import asset
from memfactory.files.places import expanded
from memfactory.model.adapters import is_pointer, load_adapter
from memfactory.model.chat import ChatFormat
from memfactory.model.fused_layers import fuse_layers
from memfactory.model.gguf_file import SUFFIX, gguf_instead, gguf_problem
from memfactory.model.gguf_model import gguf_config, gguf_end_ids, gguf_model, gguf_tokenizer, unread_rotation
from memfactory.model.hub import hub_away, looks_local
from memfactory.model.near_models import TINY, model_hint
from memfactory.model.options import ModelConfig

log = logging.getLogger("memfactory")
TRUST = "trust_remote_code"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device called `name`; auto is this process's CUDA device if it has one, else the CPU.

    Raises ConfigError for a device that this machine does not have.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % count) if count else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"model.device: {name!r} is not a device; write auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"{count} CUDA device(s)" if count else "no CUDA device that this build of torch can use"
        raise ConfigError(f"model.device: {name!r} was asked for, but there is {there}; write auto or cpu")
    return device


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The model's compute type; auto is bfloat16 on CUDA and float32 elsewhere."""
    return _DTYPES[config.compute_type(cuda=device.type == "cuda")]


def resolve_attention(config: ModelConfig, device: torch.device) -> str:
    """The attention kernel; ConfigError if flash-attention is set and cannot run."""
    installed = importlib.util.find_spec("flash_attn") is not None
    half = compute_dtype(config, device) != torch.float32
    if config.attention == "auto":
        return "flash_attention_2" if installed and half and device.type == "cuda" else "sdpa"
    if config.attention == "flash_attention_2":
        problems = []
        if device.type != "cuda":
            problems.append(f"a CUDA device, but the device is {device.type}")
        if not half:
            problems.append("model.dtype bfloat16 or float16, not float32")
        if not installed:
            problems.append("the package flash-attn (pip install 'memfactory[flash-attn]' --no-build-isolation)")
        if problems:
            needs = "; ".join(problems)
            raise ConfigError(f"model.attention: flash_attention_2 needs {needs}. Write attention: auto")
    return config.attention


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `config.path`, with `config.chat_template` in place of its own if that is set.

    A hub's model with random weights takes the tokenizer of `tiny` if the hub cannot be reached. Raises ConfigError if
    no tokenizer can be loaded.
    """
    path, _ = places(config)
    try:
        if _is_file(path):
            tokenizer = gguf_tokenizer(path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                path, trust_remote_code=config.trust_remote_code, local_files_only=_only_here(path)
            )
    except Exception as error:
        if config.random_weights and not _is_local(path):
            # Under random weights no id has a meaning, so a benchmark needs no download.
            return load_tokenizer(ModelConfig(chat_template=config.chat_template))
        raise _missing("tokenizer", path, error) from error
    if config.chat_template is not None:
        template = expanded(config.chat_template)
        if not template.is_file():
            raise ConfigError(f"model.chat_template: there is no file {config.chat_template!r}")
        try:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"model.chat_template: {config.chat_template!r} cannot be read: {error}") from error
    return tokenizer


def load_chat(config: ModelConfig) -> ChatFormat:
    """The chat format of `config.path`: its tokenizer, chat template and every id that ends a reply."""
    tokenizer = load_tokenizer(config)
    path, _ = places(config)
    end_ids = gguf_end_ids(path) if _is_file(path) else _generation_ends(config, path)
    return ChatFormat(tokenizer, config.template_options, end_ids=end_ids, rows=_embedding_rows(config, path))


def _generation_ends(config: ModelConfig, path: str) -> list[int]:
    """The ids that end a reply, by the generation_config.json of a folder or hub id."""
    try:
        ends = GenerationConfig.from_pretrained(path, local_files_only=_only_here(path)).eos_token_id
    except OSError:
        # As transformers does: without the file, the model's own config holds the id.
        ends = None if _has_no_model(path) else load_architecture(config).get_text_config().eos_token_id
    except Exception as error:
        raise _missing("generation_config.json", path, error) from error
    end_ids = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
    if not all(isinstance(end, int) for end in end_ids):
        raise ConfigError(f"model.path: generation_config.json of {path!r} has eos_token_id {ends!r}; it must be an id")
    return end_ids


def _embedding_rows(config: ModelConfig, path: str) -> int | None:
    """The number of the model's embeddings; None for a folder that holds a tokenizer alone."""
    if _has_no_model(path):
        return None
    rows: int = load_architecture(config).get_text_config().vocab_size
    return rows


def _has_no_model(path: str) -> bool:
    """Whether `path` is a folder that holds a tokenizer alone."""
    return Path(path).is_dir() and not (Path(path) / "config.json").is_file()


def load_model(
    config: ModelConfig,
    *,
    training: bool,
    frozen_base: bool = False,
    masters: str = "float32",
    on_host: bool = False,
) -> PreTrainedModel:
    """The causal language model of `config`, on its device (`on_host`: in host memory all the same), in eval mode.

    In training the weights are of type `masters` under any `config.dtype`, unless only adapters will be trained
    (`frozen_base`, or `config.adapter`): then the base has the compute type. `config.adapter` stays a trainable PEFT
    adapter in training and is merged into the weights otherwise. `config.random_weights` reads config.json alone and
    initialises from a fixed seed. Raises ConfigError for missing files and for a model that does not fit this machine.
    """
    device = resolve_device(config.device)
    place = torch.device("cpu") if on_host else device
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    path, adapter = places(config)
    whole = training and not frozen_base and adapter is None
    dtype = _DTYPES[masters] if whole else compute_dtype(config, device)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": resolve_attention(config, device)}
    options |= {TRUST: config.trust_remote_code}
    try:
        model = _random_model(config, place, options) if config.random_weights else _stored_model(path, options, place)
        model = model.to(place)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"model.path: {path!r} in {dtype} does not fit into the memory of {place}") from error
    except Exception as error:
        raise _missing("model", path, error) from error
    shifts = _shifting_rotation(model.config)
    unread = unread_rotation(path, model.config) if _is_file(path) else None
    for warning in filter(None, (shifts, unread)):
        log.warning("model %r: %s", config.path, warning)
    if config.fused_layers:
        fuse_layers(model)
    if adapter is not None:
        return load_adapter(model, adapter, training=training).eval()
    return model.eval()


def _shifting_rotation(config: PretrainedConfig) -> str | None:
    """A warning about a rotary embedding that changes with the length of the longest conversation; None without one."""
    architecture = config.get_text_config()
    parameters = getattr(architecture, "rope_parameters", None) or {}
    # One for the whole model, or one for each kind of layer.
    for rotary in (parameters, *parameters.values()):
        if isinstance(rotary, dict) and rotary.get("rope_type") in ("dynamic", "longrope"):
            length = architecture.max_position_embeddings
            if rotary["rope_type"] == "longrope":
                length = rotary.get("original_max_position_embeddings") or length
            return (
                f"its rotary embedding is {rotary['rope_type']!r}. Beyond {length:,} tokens the results of a "
                "conversation depend on the longest one that is computed with it; keep them shorter"
            )
    return None


def _stored_model(path: str, options: dict[str, Any], place: torch.device) -> PreTrainedModel:
    """The model at `path`. A GPU receives each tensor as it is read, so that the host never holds the whole model; a
    model in a GGUF file is read in host memory."""
    directly = {"device_map": {"": place}} if place.type == "cuda" else {}
    with without_progress_bar():
        if _is_file(path):
            model, info = gguf_model(path, {name: value for name, value in options.items() if name != TRUST})
        else:
            model, info = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=_only_here(path), output_loading_info=True, **options, **directly
            )
    if info["missing_keys"]:
        # They would be random numbers otherwise.
        raise ValueError(f"its weights lack {', '.join(sorted(info['missing_keys'])[:5])}")
    return model


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Within it transformers draws no progress bar."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """The description of the model without its weights.

    Those of the models that the paper trains are inside the package, so that they need no hub. Raises ConfigError.
    """
    path, _ = places(config)
    known = asset(f"architectures/{path.rpartition('/')[2].lower()}.json")
    try:
        if _is_file(path):
            return gguf_config(path)
        only_here = known.is_file() or _only_here(path)
        return AutoConfig.from_pretrained(path, local_files_only=only_here, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        if _is_local(path) or not known.is_file():
            raise _missing("config", path, error) from error
        return AutoConfig.for_model(**json.loads(known.read_text(encoding="utf-8")))


def _random_model(config: ModelConfig, device: torch.device, options: dict[str, Any]) -> PreTrainedModel:
    architecture = load_architecture(config)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(architecture, **options)


def places(config: ModelConfig) -> tuple[str, str | None]:
    """The folder, GGUF file or hub id of the base model, and the adapter on top.

    `config.path` may itself be an adapter folder: then its base model is the one that it names.
    """
    path, adapter = _place(config.path), config.adapter
    if adapter is not None and not expanded(adapter).is_dir() and looks_local(adapter):
        raise ConfigError(f"model.adapter: there is no folder {adapter!r}")
    description = Path(path) / "adapter_config.json"
    if adapter is None and description.is_file() and not (Path(path) / "config.json").is_file():
        try:
            named = json.loads(description.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise ConfigError(f"model.path: {description} cannot be read: {error}") from error
        if not named:
            raise ConfigError(f"model.path: the adapter in {config.path!r} does not name its base model")
        try:
            return _place(named), path
        except ConfigError:
            raise ConfigError(
                f"model.path: the adapter in {config.path!r} is for the model in {named!r}, and there is no such "
                f"folder here. Write the model's place in model.path, and model.adapter: {config.path}"
            ) from None
    return path, None if adapter is None else str(expanded(adapter)) if _is_local(adapter) else adapter


def _place(path: str) -> str:
    if path == TINY:
        folder = asset(TINY)
        if not folder.is_dir():
            raise ConfigError("model.path: the model 'tiny' is not in this installation of memfactory")
        return str(folder)
    local = expanded(path)
    if local.is_file() or (local.suffix.lower() == SUFFIX and not local.is_dir()):
        problem = gguf_problem(local)
        if problem is not None:
            raise ConfigError(f"model.path: {problem}")
    elif not local.is_dir():
        if looks_local(path):
            raise ConfigError(f"model.path: there is no folder {path!r}; {model_hint(path)}")
        return path
    return str(local)


def _is_local(path: str) -> bool:
    place = expanded(path)
    return place.is_dir() or place.is_file()


def _only_here(path: str) -> bool:
    """Whether only local files can be read for `path`: a folder's, or those in the cache of a hub that is away."""
    return _is_local(path) or hub_away() is not None


def _is_file(path: str) -> bool:
    """Whether `path`, one of `places`, is a GGUF file."""
    return Path(path).is_file()


def _missing(kind: str, path: str, error: Exception) -> ConfigError:
    """The error for files that are missing, broken, or of another shape than their configuration says.

    The libraries raise errors of any type, so there is no list of types.
    """
    reason = in_one_line(error)
    if isinstance(error, KeyError | TypeError | AttributeError | IndexError):
        # The texts of these errors are bare names from inside the libraries.
        reason = f"{type(error).__name__}: {reason}"
    if _is_file(path):
        return ConfigError(f"model.path: the GGUF file {path!r} does not hold a usable {kind}: {reason}")
    if _is_local(path):
        pointer = next((file.name for file in _large_files(Path(path)) if is_pointer(file)), None)
        if pointer is not None:
            reason = f"{pointer} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
        elif not (Path(path) / "config.json").is_file():
            reason = gguf_instead(Path(path)) or reason
        return ConfigError(f"model.path: the folder {path!r} does not hold a usable {kind}: {reason}")
    away = hub_away()
    cause = "the hub cannot be reached, or has no such model"
    if away is not None:
        cause, reason = "the hub cannot be reached, and its cache has no such model", away
    return ConfigError(
        f"model.path: {path!r} is not a local folder, and as a hub id its {kind} cannot be fetched ({cause}): "
        f"{reason.rstrip('.')}; {model_hint(path)}"
    )


def _large_files(folder: Path) -> list[Path]:
    """The files that a Git repository would store outside, in LFS."""
    patterns = ("*.safetensors", "*.bin", "tokenizer.json")
    return [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]
