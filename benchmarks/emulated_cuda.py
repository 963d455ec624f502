"""A CUDA device inside a build of torch that has none: its tensors say cuda:0 and are computed on the CPU.

    with emulated_cuda() as device:
        model = on_cuda(load_model(...))        # every tensor that the code then makes from it is on cuda:0
        ...
        device.kernels, device.waits            # launches by operation, waits of the host by operation

An operation between its tensors and those of the CPU raises MixedDevices, as it would on a GPU. Operations are counted
below autograd, and composite ones by their parts, so a count is close to the number of launches. Attention and norms
that only CUDA has are computed by their formulas, with the checks of their arguments that the kernels make. It shows
neither speed nor CUDA's own rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks import cuda_kernels

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten
# The host needs their results, so it waits for everything that was launched before.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal", "item"}
# They launch nothing.
ALLOCATING = {
    "_local_scalar_dense",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "lift_fresh",
    "detach",
    "alias",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Under autocast CUDA computes them in float32, and the CPU does not.
FLOAT32 = {"rms_norm", "layer_norm", "softmax", "log_softmax", "logsumexp", "cumsum", "cumprod", "sum", "prod", "pow"}
FACTORIES = {
    getattr(torch, name)
    for name in [
        "tensor",
        "as_tensor",
        "zeros",
        "ones",
        "empty",
        "full",
        "arange",
        "linspace",
        "eye",
        "rand",
        "randn",
        "randint",
        "randperm",
        "empty_strided",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
    ]
}


class MixedDevices(RuntimeError):
    """Tensors of the GPU and of the CPU met in one operation."""


class Device:
    """Counts by operation since `reset`: `kernels`, `waits` of the host, and `uploads` of tensors to the device."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()

    def reset(self) -> None:
        for counter in (self.kernels, self.waits, self.uploads):
            counter.clear()


DEVICE = Device()


class CudaTensor(torch.Tensor):
    """A tensor of the device around the CPU tensor `values` that holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> CudaTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype
        )
        tensor.values = values
        return tensor

    def __init__(self, values: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def __repr__(self, **options: Any) -> str:
        return f"CudaTensor({self.values!r})"

    def cpu(self, *args: Any) -> Tensor:
        DEVICE.waits["cpu"] += 1
        return _Download.apply(self) if self.requires_grad else self.values.clone()

    def tolist(self) -> Any:
        DEVICE.waits["tolist"] += 1
        return self.values.tolist()

    def item(self) -> Any:
        DEVICE.waits["item"] += 1
        return self.values.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __format__(self, form: str) -> str:
        return format(self.item(), form)

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError("can't convert a tensor of cuda:0 to numpy")

    __array__ = numpy

    @property
    def data(self) -> CudaTensor:
        return CudaTensor(self.values.detach())

    @data.setter
    def data(self, new: CudaTensor) -> None:
        # The wrapper's own type and sizes are fixed, so another takes its place.
        other: Tensor = CudaTensor(new.values)
        if isinstance(self, nn.Parameter):
            other = nn.Parameter(other, requires_grad=self.requires_grad)
        torch.utils.swap_tensors(self, other)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy: Tensor = CudaTensor(self.values.detach().clone())
            if isinstance(self, nn.Parameter):
                copy = nn.Parameter(copy, requires_grad=self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute `func` on the CPU, and count it."""
    name = func._schema.name.removeprefix("aten::")
    replacement = cuda_kernels.KERNELS.get(name)
    if replacement is None and name not in WAITING:
        # Without gradients composite operations arrive whole; a GPU launches their parts.
        parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    check_devices(name, args, kwargs)
    inputs, options = tree_map(plain, args), tree_map(plain, kwargs)
    if "device" in options:
        options["device"] = CPU
    result = (replacement or func)(*inputs, **options)
    by_mask = name == "index" and any(
        isinstance(index, Tensor) and index.dtype == torch.bool for index in tree_leaves(args[1])
    )
    if name in WAITING or by_mask:
        DEVICE.waits[name] += 1
    view = shares_storage(result, inputs) and not func._schema.is_mutable
    if not view and name not in ALLOCATING:
        DEVICE.kernels[name] += 1
    if name.endswith("_") and isinstance(args[0], Tensor):
        return args[0]
    return tree_map(lambda value: CudaTensor(value) if isinstance(value, Tensor) else value, result)


def plain(value: Any) -> Any:
    return value.values if isinstance(value, CudaTensor) else value


def check_devices(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    of_host = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    if not of_host:
        return
    to_device = isinstance(args[0], CudaTensor)
    if name == "copy_":
        (DEVICE.uploads if to_device else DEVICE.waits)[name] += 1
    elif name in INDEXING and to_device and not any(tensor.is_floating_point() for tensor in of_host):
        DEVICE.uploads[name] += len(of_host)
    elif any(tensor.dim() or name in ("cat", "stack") for tensor in of_host):
        shapes = [tuple(tensor.shape) for tensor in of_host]
        raise MixedDevices(f"{name}: tensors on cuda:0 and on the CPU, the latter of the shapes {shapes}")


def shares_storage(result: Any, inputs: Any) -> bool:
    """Whether `result` is a view: it took no kernel."""
    tensors = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    places = {value.untyped_storage().data_ptr() for value in tree_leaves(inputs) if isinstance(value, Tensor)}
    return bool(tensors) and all(value.untyped_storage().data_ptr() in places - {0} for value in tensors)


class _Download(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: CudaTensor) -> Tensor:
        return tensor.values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return CudaTensor(gradient)


class _Placement(TorchFunctionMode):
    """Calls that name a device: made on the CPU and wrapped."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return _moved(args[0], args[1:], kwargs)
        if func in FACTORIES and _is_cuda(kwargs.get("device")):
            counter = DEVICE.uploads if func in (torch.tensor, torch.as_tensor) else DEVICE.kernels
            counter[func.__name__] += 0 if "empty" in func.__name__ else 1
            values = func(*tree_map(plain, args), **(tree_map(plain, kwargs) | {"device": CPU}))
            return CudaTensor(values)
        if func.__name__ in FLOAT32 and torch.is_autocast_enabled("cuda"):
            args, kwargs = tree_map(_widened, args), tree_map(_widened, kwargs)
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    half = isinstance(value, CudaTensor) and value.dtype in cuda_kernels.HALF
    return value.float() if half else value


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _moved(tensor: Tensor, places: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """`tensor.to(...)`: to another device, another type, or both."""
    device, dtype = options.get("device"), options.get("dtype")
    for place in places:
        if isinstance(place, Tensor):
            device, dtype = place.device, place.dtype
        elif isinstance(place, torch.dtype):
            dtype = place
        elif isinstance(place, str | torch.device):
            device = place
    if device is not None and _is_cuda(device) != isinstance(tensor, CudaTensor):
        if tensor.requires_grad and not isinstance(tensor, CudaTensor):
            raise NotImplementedError("gradients through an upload")
        DEVICE.uploads["to"] += _is_cuda(device)
        tensor = CudaTensor(tensor.detach().clone()) if _is_cuda(device) else tensor.cpu()
    return tensor if dtype is None or dtype == tensor.dtype else torch.ops.aten._to_copy(tensor, dtype=dtype)


class _Autocast(torch.autocast):
    """The autocast of the CPU, whose list of operations differs in small things."""

    def __init__(self, device_type: str, *args: Any, **options: Any) -> None:
        super().__init__("cpu", *args, **options)


def _fused_norm(*args: Any) -> Any:
    """torch's fused norm: a kernel of CUDA, which the CPU computes by parts before `dispatch` can see it."""
    return dispatch(_FUSED_NORM.default, args, {}) if isinstance(args[0], CudaTensor) else _FUSED_NORM(*args)


_FUSED_NORM = getattr(aten, "_fused_rms_norm", None)
_fused_norm.default = getattr(_FUSED_NORM, "default", None)  # type: ignore[attr-defined]


class _Generator(torch.Generator):
    """A generator of the CPU on any device."""

    def __new__(cls, device: Any = None) -> Any:
        return super().__new__(cls)


def on_cuda(model: nn.Module) -> Any:
    """`model` with its parameters and buffers on the device; those that are one stay one."""
    moved: dict[Tensor, Tensor] = {}  # Tensors are hashed by identity.
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor not in moved and not isinstance(tensor, CudaTensor):
                    copy: Tensor = CudaTensor(tensor.detach().clone())
                    parameter = isinstance(tensor, nn.Parameter)
                    moved[tensor] = nn.Parameter(copy, tensor.requires_grad) if parameter else copy
                held[name] = None if tensor is None else moved.get(tensor, tensor)
    return model


def _module_moved(module: nn.Module, *places: Any, **options: Any) -> nn.Module:
    """`module.to(...)`: onto the device, and in another type."""
    device = next((place for place in (*places, options.get("device")) if isinstance(place, torch.device)), None)
    dtype = next((place for place in (*places, options.get("dtype")) if isinstance(place, torch.dtype)), None)
    if _is_cuda(device):
        on_cuda(module)
    return module if dtype is None else module._apply(lambda tensor: tensor.to(dtype))


@contextmanager
def emulated_cuda() -> Iterator[Device]:
    """Within it cuda:0 is there."""
    enabled, dtype, fork = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.random.fork_rng
    cpu: Callable[..., str] = lambda *device: "cpu"  # noqa: E731
    DEVICE.reset()
    with (
        mock.patch.multiple(torch, autocast=_Autocast, Generator=_Generator),
        mock.patch.multiple(torch.amp, autocast=_Autocast),
        mock.patch.object(torch, "is_autocast_enabled", lambda *device: enabled(cpu(*device))),
        mock.patch.object(torch, "get_autocast_dtype", lambda *device: dtype(cpu(*device))),
        mock.patch.object(torch.random, "fork_rng", lambda *places, **options: fork(devices=[])),
        mock.patch.object(torch.cuda, "empty_cache", lambda: None),
        mock.patch.object(nn.Module, "to", _module_moved),
        mock.patch.object(aten, "_fused_rms_norm", _fused_norm, create=_FUSED_NORM is None),
        _Placement(),
    ):
        yield DEVICE
