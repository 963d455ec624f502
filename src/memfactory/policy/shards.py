"""A model whose weights lie in shards over the processes (FSDP2), and its twin that holds them whole for sampling.

Each decoder layer is gathered for its own computation and freed behind it, in the backward pass again. The rest, such
as the embedding and the head, is gathered for a whole pass. It knows neither turns nor a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from memfactory.errors import ConfigError
from memfactory.model.adapters import Network

T = TypeVar("T")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_RUN = "memfactory_run"
# Without this method a torch cannot sum gradients over gloo; older ones lack `ignored_params` as well.
_NEEDED = "set_force_sum_reduction_for_comms"


def check_torch() -> None:
    """Raise ConfigError if this torch cannot shard as is done here."""
    if getattr(FSDPModule, _NEEDED, None) is None:
        raise ConfigError(
            f"train.shard: fsdp2 needs a torch whose FSDP2 sums gradients ({_NEEDED}); this is torch "
            f"{torch.__version__}. Install a newer torch, or leave train.shard out"
        )


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of `model`. Raises ConfigError for a model that does not list them."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ConfigError(
            f"train.shard: fsdp2 shards decoder layers, and models of type {model.config.model_type!r} do not list "
            "them; leave train.shard out"
        )
    return layers


def trial_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A copy on `device` of the first two layers of `model`, with the embedding, the last norm and the head.

    They behave as all layers of the model do, and the whole may not fit one device.
    """
    short = same_modules(model)
    layers = decoder_layers(short)
    del layers[2:]
    # The copy's own config, which its modules share.
    text = short.config.get_text_config()
    text.num_hidden_layers = len(layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: len(layers)]
    return deepcopy(short).to(device)


def same_modules(network: ModuleT) -> ModuleT:
    """Modules of their own with the very parameters of `network`."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in network.parameters()}
    return deepcopy(network, memo)


def shard(
    model: PreTrainedModel,
    device: torch.device,
    dtype: torch.dtype,
    whole_ones: set[nn.Parameter],
    *,
    frozen: bool = False,
) -> None:
    """Shard `model` in place over all processes; its weights are gathered in `dtype`, the type that it computes in.

    The parameters `whole_ones` stay whole in each process. Gradients are summed over processes, in float32. Every
    process must call it, with the same weights. A `frozen` model has no backward pass, behind which a trained one frees
    its embedding and head.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    gathered = None if dtype == torch.float32 else dtype
    # The states between layers keep their type, as without shards.
    types = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*decoder_layers(model), model):
        freed = True if frozen or module is not model else None
        fully_shard(module, mesh=mesh, reshard_after_forward=freed, mp_policy=types, ignored_params=whole_ones)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums and no means: each token's weight is already that of the whole optimizer step.
            module.set_gradient_divide_factor(1.0)
            # gloo has no scaled sum.
            module.set_force_sum_reduction_for_comms(True)
    # `fully_shard` gave the model a class of its own, which alone gets the method.
    setattr(type(model), _RUN, _run)
    register_fsdp_forward_method(model, _RUN)


def _run(self: PreTrainedModel, work: Callable[[PreTrainedModel], T]) -> T:
    return work(self)


def run_inside(model: PreTrainedModel, work: Callable[[PreTrainedModel], T]) -> T:
    """`work(model)` between the hooks that gather the embedding, the norm and the head.

    A pass reads the decoder and the head's weight by themselves, and FSDP hooks itself into methods of the root alone.
    """
    if not isinstance(model, FSDPModule):
        return work(model)
    result: T = getattr(model, _RUN)(work)
    return result


def local_parameters(network: nn.Module) -> list[nn.Parameter]:
    """This process's shards of the trained weights as plain parameters over the same memory.

    An optimizer that treats each number by itself updates the sharded model through them, and needs no word of shards.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [nn.Parameter(local_part(parameter.detach())) for parameter in trained]


def local_part(value: Tensor) -> Tensor:
    """This process's shard of `value`, over the same memory; a plain tensor is its own."""
    return value.to_local() if isinstance(value, DTensor) else value


@torch.no_grad()
def whole(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The whole of a sharded tensor in `dtype`, in every process; all must call it. A plain tensor as it is."""
    if not isinstance(value, DTensor):
        return value
    # Cast first: half the bytes go over the wire.
    cast: Any = value.detach().to(dtype)
    gathered: Tensor = cast.full_tensor()
    return gathered


class Twin:
    """The model that engines sample from: modules with the weights of `sharded`, whole, or without any.

    Until `fill` its sharded weights have no memory. Adapters, which are not sharded, are the policy's own parameters.
    """

    def __init__(self, twin: Network, sharded: Network, device: torch.device) -> None:
        self.network = twin
        self.filled = False
        names = dict(sharded.named_parameters())
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in twin.modules():
            for attribute, parameter in module.named_parameters(recurse=False):
                # Tied weights have several places.
                places.setdefault(id(parameter), []).append((module, attribute))
        self._places = {
            name: places[id(parameter)]
            for name, parameter in twin.named_parameters()
            if isinstance(names[name], DTensor)
        }
        self._sharded = names
        self.release()
        for buffer in twin.buffers():
            buffer.data = buffer.data.to(device)

    def weights(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Every sharded weight whole, one after the other, in `dtype`. All processes must go through them together."""
        for name in self._places:
            yield name, whole(self._sharded[name], dtype)

    def fill(self, dtype: torch.dtype) -> None:
        """Give the twin its whole weights in `dtype`. Every process must call it."""
        for name, value in self.weights(dtype):
            self.set(name, value)
        self.filled = True

    def set(self, name: str, value: Tensor) -> None:
        """Give the weight called `name` a value."""
        parameter = nn.Parameter(value, requires_grad=False)
        for module, attribute in self._places[name]:
            setattr(module, attribute, parameter)

    def release(self) -> None:
        """Free the memory of the whole weights."""
        for name in self._places:
            sharded = self._sharded[name]
            self.set(name, torch.empty(sharded.shape, dtype=sharded.dtype, device="meta"))
        self.filled = False
