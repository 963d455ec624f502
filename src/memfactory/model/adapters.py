"""PEFT adapters: loaded and checked, merged into a model's weights, or passed on beside them. It knows no training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel, PeftType, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from memfactory.errors import ConfigError, in_one_line
from memfactory.model.hub import hub_away

Network: TypeAlias = "PreTrainedModel | PeftModel"
SPLIT = (
    "engine: the adapter changes the embedding or the head of a model that holds both as one weight, and so does vLLM"
)
"""Why vLLM cannot take an adapter for which `splits_tied_weights` holds."""
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def base_model(network: Network) -> PreTrainedModel:
    """The model itself, with the layers of its adapters inside if it has any."""
    return network.get_base_model() if isinstance(network, PeftModel) else network


def load_adapter(model: PreTrainedModel, adapter: str, *, training: bool) -> Network:
    """`model` with the adapter of the folder (or hub id) `adapter`.

    In training it stays an adapter; otherwise it is merged into the weights. Raises ConfigError for a folder without an
    adapter of this model, and for adapters that are not in the weights (prompt tuning) or cannot be merged into them.
    """
    place = _place(adapter)
    if Path(place).is_dir():
        _check_folder(Path(place))
    try:
        with without_peft_warnings():
            adapted = PeftModel.from_pretrained(model, place, is_trainable=training)
            # from_pretrained only warns of tensors that find no place, and of places that find no tensor.
            result = adapted.load_adapter(
                place, adapted.active_adapter, is_trainable=training, torch_device=str(model.device)
            )
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"model.adapter: {adapter!r} does not fit into the memory of {model.device}") from error
    except Exception as error:
        raise ConfigError(
            f"model.adapter: {adapter!r} cannot be loaded as a PEFT adapter: {in_one_line(error)}"
        ) from error
    missing = _missing_tensors(adapted, result.missing_keys)
    strange = [*missing, *result.unexpected_keys]
    if strange:
        lacking = f"lacks {len(missing)} tensors that this model needs" if missing else ""
        foreign = f"has {len(result.unexpected_keys)} for which it has no place" if result.unexpected_keys else ""
        raise ConfigError(
            f"model.adapter: {adapter!r} was made for another model: it "
            f"{' and '.join(part for part in (lacking, foreign) if part)} (such as {strange[0]})"
        )
    try:
        if not training:
            return merged_model(adapted)
        _check_merging(adapted)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"model.adapter: {adapter!r} does not fit into the memory of {model.device}") from error
    except Exception as error:
        # Each kind of adapter refuses in a way of its own.
        kind = adapted.peft_config[adapted.active_adapter].peft_type
        raise ConfigError(
            f"model.adapter: {adapter!r} is of the kind {getattr(kind, 'value', kind)}, which cannot be merged into "
            f"this model's weights, so that no engine could use it: {in_one_line(error)}"
        ) from error
    return adapted


def _missing_tensors(adapted: PeftModel, names: Sequence[str]) -> list[str]:
    """Those of the tensors `names` that no tensor of another name is: VB-LoRA saves its common bank once."""
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    missing = set(names)
    loaded = {id(parameter) for name, parameter in parameters.items() if name not in missing}
    return [name for name in names if id(parameters.get(name)) not in loaded]


def _check_merging(adapted: PeftModel) -> None:
    """Raise an error of any type for adapters that cannot be merged: tried on the smallest layer of each kind."""
    layers = _adapted_layers(adapted.get_base_model()).values()
    if not layers:
        raise TypeError("it replaces no layer")
    kinds: dict[type, nn.Module] = {}
    for layer in sorted(layers, key=lambda layer: sum(value.numel() for value in layer.parameters())):
        if isinstance(layer, BaseTunerLayer):
            kinds.setdefault(type(layer), layer)
    with torch.no_grad():
        for layer in kinds.values():
            list(_layer_weights(layer, adapters=True))


def _place(adapter: str) -> str:
    """The folder or hub id of `adapter`; of a hub that is away, the folder in its cache."""
    away = None if Path(adapter).is_dir() else hub_away()
    if away is None:
        return adapter
    try:
        # PEFT would ask the hub for each file, with retries.
        return snapshot_download(adapter, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.adapter: {adapter!r} is not a local folder, and as a hub id it cannot be fetched (the hub cannot "
            f"be reached, and its cache has no such adapter): {away}"
        ) from error


def _check_folder(folder: Path) -> None:
    """Raise ConfigError for a folder that PEFT would refuse with an unclear message, or look up on the hub."""

    def refuse(reason: str) -> ConfigError:
        return ConfigError(f"model.adapter: {str(folder)!r} cannot be loaded as a PEFT adapter: {reason}")

    try:
        description = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(f"its adapter_config.json cannot be read ({in_one_line(error)})") from error
    kind = description.get("peft_type") if isinstance(description, dict) else None
    if kind not in set(PeftType) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise refuse(f"its adapter_config.json names the peft_type {kind!r}, which this version of peft does not know")
    if issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[kind], PromptLearningConfig):
        raise refuse(f"{kind} changes the prompt, not the weights, and prompts here are the recorded tokens alone")
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise refuse(f"it has no {WEIGHT_FILES[0]}")
    if is_pointer(weights):
        raise refuse(f"its {weights.name} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")


def is_pointer(file: Path) -> bool:
    """Whether `file` is a Git LFS pointer and not the real file."""
    with open(file, "rb") as opened:
        return opened.read(40).startswith(b"version https://git-lfs")


def merged_model(adapted: PeftModel) -> PreTrainedModel:
    """The model with its adapters added into its weights; `adapted` must not be used any more.

    If embedding and head are one weight and an adapter changes only one of them, they become two.
    """
    model = adapted.get_base_model()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if is_tied(model) and any(isinstance(module, BaseTunerLayer) for module in (embedding, head)):
        place = _plain(head)
        place.weight = nn.Parameter(place.weight.detach().clone(), requires_grad=False)
    with without_peft_warnings():
        merged: PreTrainedModel = adapted.merge_and_unload()
    if merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight:
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = False
    return merged


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the embedding and the head of `model`, below any adapter, are one weight."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is not None and _plain(embedding).weight is _plain(head).weight


def splits_tied_weights(network: Network) -> bool:
    """Whether adapters change the embedding and the head apart from each other though the model ties them."""
    model = base_model(network)
    if not model.config.get_text_config().tie_word_embeddings:
        return False
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return any(isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in ends)


def reason_against_adapter_alone(network: PeftModel) -> str | None:
    """Why an engine that adds low-rank adapters itself cannot take this one; None: it can."""
    ends = (network.get_base_model().get_input_embeddings(), network.get_base_model().get_output_embeddings())
    for config in network.peft_config.values():
        if config.peft_type != PeftType.LORA:
            return f"it is of the kind {config.peft_type.value}"
        # peft leaves the names of this kind's fields out of its base class.
        settings: dict[str, Any] = config.to_dict()
        for field in ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters"):
            if settings.get(field):
                return f"it uses {field}"
        if settings.get("bias", "none") != "none":
            return "it trains biases"
    if any(isinstance(module, BaseTunerLayer) for module in ends):
        return "it changes the embedding or the head"
    return None


@torch.no_grad()
def merged_weights(network: Network, dtype: torch.dtype, *, adapters: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The whole model's weights in `dtype` under its own names, adapters added in unless they are to be left out.

    A weight that is tied comes once, unless adapters split it. The network stays as it is: merging in place and taking
    it back would leave rounding errors behind. One adapted layer at a time is copied in float32.
    """
    model = base_model(network)
    layers = _adapted_layers(model)
    done: set[int | str] = set()
    for name, value in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        above = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        layer = next((path for path in above if path in layers), None)
        if (mark := id(value) if layer is None else layer) in done:
            continue
        done.add(mark)
        if layer is None:
            yield name, value.to(dtype)
        else:
            for parameter, own in _layer_weights(layers[layer], adapters):
                yield f"{layer}.{parameter}", own.to(dtype)


def _adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers by which PEFT replaced the model's own, by name, without layers inside of them."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{layer}.") for layer in layers)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            layers[name] = module
    return layers


def _layer_weights(layer: nn.Module, adapters: bool) -> Iterator[tuple[str, Tensor]]:
    """The parameters that the layer below the adapter has: with the adapter added in, or as they are."""
    if not adapters:
        yield from _plain(layer).named_parameters()
        return
    yield from _merged_layer(layer).named_parameters()


def _merged_layer(layer: nn.Module) -> nn.Module:
    """A copy in float32 of the layer below the adapter, with the adapter added in."""
    # PEFT merges in place, and each kind in a way of its own.
    copy: Any = deepcopy(layer).float()
    if isinstance(copy, AuxiliaryTrainingWrapper):
        plain: nn.Module = copy.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        return plain
    copy.merge()
    plain = copy.get_base_layer()
    return plain


@torch.no_grad()
def copy_in_type(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of `model` in `dtype` with its adapters added in; weights of that type below no adapter are not copied.

    The model stays as it is, and its attention and mode are no longer the copy's.
    """
    layers = _adapted_layers(model)
    # deepcopy takes these for copies of the originals that it meets.
    copies: dict[int, Any] = {id(layer): _merged_layer(layer).to(dtype) for layer in layers.values()}
    for name, weight in model.named_parameters(remove_duplicate=False):
        inside = any(name.startswith(f"{layer}.") for layer in layers)
        if not inside and id(weight) not in copies:
            same = weight.dtype == dtype or not weight.is_floating_point()
            copies[id(weight)] = weight if same else nn.Parameter(weight.to(dtype), requires_grad=False)
    copied: PreTrainedModel = deepcopy(model, copies)
    return copied


def _plain(module: nn.Module) -> Any:
    """The model's own layer: `module` itself, or the layer that it wraps."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Suppress warnings about cases that are checked or handled here, and about calls that PEFT makes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="peft")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield
