"""The weights of a policy: made trainable, written, read back, synced to engines. It knows no loss and no process."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file as load_safetensors
from torch import Tensor
from transformers import PreTrainedModel

from memfactory.config.optimizer import LoraOptions
from memfactory.engines.options import EngineConfig, VllmEngineConfig, VllmServerConfig
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.model.adapters import (
    SPLIT,
    Network,
    merged_weights,
    reason_against_adapter_alone,
    splits_tied_weights,
    without_peft_warnings,
)
from memfactory.model.loading import without_progress_bar


def trainable(
    model: Network,
    lora: LoraOptions | None,
    dtype: torch.dtype,
    seed: int,
    masters: torch.dtype = torch.float32,
) -> Network:
    """The model with its trained weights requiring a gradient, which is float32.

    An adapter that the model already has is trained further; else `lora` adds a new one, and without it all weights
    train, in type `masters`. Adapters are float32.
    """
    if isinstance(model, PeftModel):
        network: Network = model
    elif lora is not None:
        network = with_adapters(model, lora, dtype, seed)
    else:
        network = model.requires_grad_(True)
    adapted = isinstance(network, PeftModel)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32 if adapted else masters)
            if parameter.dtype != torch.float32:
                # In bfloat16 the sum over many micro-batches would lose most of its terms.
                parameter.grad_dtype = torch.float32
    return network


def with_adapters(model: PreTrainedModel, options: LoraOptions, dtype: torch.dtype, seed: int) -> PeftModel:
    """The model with new LoRA adapters in float32 inside its layers; its own weights are frozen in `dtype`.

    Raises ConfigError if the target modules are not in the model.
    """
    # Parameters only: a buffer such as the rotary frequencies needs its precision.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    targets = options.target_modules
    lora = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            with without_peft_warnings():
                adapted = get_peft_model(model, lora)
        except ValueError as error:
            raise ConfigError(f"train.lora.target_modules: {error}") from error
    # A PeftMixedModel comes only of mixed=True.
    return cast(PeftModel, adapted)


def check_masters(masters: torch.dtype, compute: torch.dtype) -> None:
    """Raise ConfigError for trained weights of a type that `compute`, or this torch, cannot train."""
    if masters == torch.float32:
        return
    if compute != masters:
        raise ConfigError(
            "train.master_weights: bfloat16_stochastic computes in bfloat16, but model.dtype gives "
            f"{str(compute).removeprefix('torch.')} here; write model.dtype: bfloat16"
        )
    if not hasattr(torch.Tensor, "grad_dtype"):
        raise ConfigError(
            "train.master_weights: bfloat16_stochastic sums gradients in float32, which needs torch 2.10 or "
            f"newer (this is {torch.__version__}). Use a newer torch, or master_weights: float32"
        )


def check_engine(network: Network, engine: EngineConfig) -> None:
    """Raise ConfigError for an adapter that the engine cannot add to its own copy of the weights."""
    if not isinstance(network, PeftModel) or not isinstance(engine, VllmEngineConfig | VllmServerConfig):
        return
    if splits_tied_weights(network):
        raise ConfigError(f"{SPLIT}. Write engine.kind: hf, or leave both out of train.lora.target_modules")
    reason = reason_against_adapter_alone(network) if engine.adapter == "lora" else None
    if reason is not None:
        raise ConfigError(f"engine: vLLM cannot take the adapter alone: {reason}. Write engine.adapter: merged")


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise ConfigError for a model whose logits are not simply its head's output over the last hidden state."""
    ids = torch.arange(8, device=model.device)[None]
    logits = model(input_ids=ids, use_cache=False).logits
    plain = model.get_output_embeddings()(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(logits, plain, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise ConfigError(
            f"model.path: models of type {model.config.model_type!r} scale or cap their logits, which training does "
            "not reproduce; use one whose logits are its head's output, such as Qwen or Llama"
        )


def save_weights(network: Network, folder: Path, dtype: torch.dtype) -> None:
    """Write a model in `dtype`, or an adapter in its own type, as safetensors that `from_pretrained` or PEFT loads."""
    if isinstance(network, PeftModel):
        # Anything but False would have PEFT look at the hub for the base model's vocabulary.
        network.save_pretrained(str(folder), save_embedding_layers=False)
        # PEFT writes a form of a model card that nobody has filled in.
        (folder / "README.md").unlink(missing_ok=True)
        return
    state = network.state_dict()
    # Tied weights are one tensor and stay one.
    cast = {value.data_ptr(): value.to(dtype) for value in state.values()}
    with without_progress_bar():
        network.save_pretrained(folder, state_dict={name: cast[value.data_ptr()] for name, value in state.items()})
    description = deepcopy(network.config)
    description.dtype = dtype
    description.save_pretrained(folder)


@torch.no_grad()
def load_weights(network: Network, folder: Path) -> None:
    """Copy the weights that `save_weights` wrote, in float32 or in their own type, into the network's.

    Raises MemFactoryError unless the weights in `folder` are all of the network's and no others.
    """
    if isinstance(network, PeftModel):
        result = set_peft_model_state_dict(network, load_safetensors(folder / "adapter_model.safetensors"))
        own = [name for name in result.missing_keys if "lora_" in name]
        _check_names(folder, own, result.unexpected_keys)
        return
    for parameter, value in zip(network.parameters(), saved_weights(network, folder), strict=True):
        parameter.copy_(value)


def saved_weights(network: PreTrainedModel, folder: Path) -> Iterator[Tensor]:
    """The weights of a whole model that `save_weights` wrote, in float32, in the order of the network's parameters.

    Raises MemFactoryError unless they are all of the network's and no others.
    """
    with without_progress_bar():
        saved, info = type(network).from_pretrained(
            folder,
            config=deepcopy(network.config),
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    _check_names(folder, info["missing_keys"], info["unexpected_keys"])
    yield from saved.parameters()


def _check_names(folder: Path, missing: Collection[str], unexpected: Collection[str]) -> None:
    if missing or unexpected:
        reasons = [f"lack {len(missing)} tensors (such as {min(missing)})"] if missing else []
        reasons += [f"have {len(unexpected)} others (such as {min(unexpected)})"] if unexpected else []
        raise MemFactoryError(f"the weights in {folder} are not those of this model: they {' and '.join(reasons)}")


@dataclass(frozen=True)
class PolicyWeights:
    """The weights of `network` in type `dtype`, for engines with a copy of their own; see `engines.base.Weights`."""

    network: Network
    dtype: torch.dtype
    version: int

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, and not the whole model."""
        return isinstance(self.network, PeftModel)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """All weights by name, with the adapter merged in."""
        return merged_weights(self.network, self.dtype)

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """All weights by name, without the adapter."""
        return merged_weights(self.network, self.dtype, adapters=False)

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter alone, as PEFT loads it."""
        save_weights(self.network, folder, self.dtype)
