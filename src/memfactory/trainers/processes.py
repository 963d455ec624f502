"""The processes that train together, and sums over all of them (docs/decisions/0001). It knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list
from torch.nn import Parameter

from memfactory.errors import ConfigError
from memfactory.trainers.batch import Totals

T = TypeVar("T")
SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# Longer than any evaluation takes; a process that has died is told of at once by its launcher.
PATIENCE = timedelta(days=2)


def make_accelerator(device: torch.device) -> Accelerator:
    """Accelerate for `device`. While one process evaluates, saves or samples longer, the others wait for it."""
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience])


def check_processes(accelerator: Accelerator) -> None:
    """Raise ConfigError where a process does not hold the whole model."""
    if accelerator.distributed_type not in SUPPORTED:
        raise ConfigError(
            "training runs in one process or in several that each hold the whole model, not under "
            f"{accelerator.distributed_type.value}; start it with torchrun or accelerate launch --multi_gpu"
        )


def leave_processes() -> None:
    """Leave the group of processes, if this is one of several: one that ends as a member can abort at its exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def of_first_process(value: T | None) -> T:
    """What the first process gave as `value`, in all of them. Every process must call it."""
    held = [value]
    broadcast_object_list(held)
    assert held[0] is not None
    return held[0]


def summed_totals(accelerator: Accelerator, own: Totals) -> Totals:
    """The totals of all processes. Every process must call it."""
    counts = torch.tensor([own.tokens, own.turns, own.trajectories, own.prompts], device=accelerator.device)
    return Totals(*accelerator.reduce(counts, reduction="sum").tolist())


def sum_gradients(accelerator: Accelerator, parameters: Sequence[Parameter]) -> None:
    """Give every process the sum of all processes' gradients; one that has none adds zeros. All must call it."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        own = parameter.grad
        if own is None:
            own = torch.zeros_like(parameter, dtype=torch.float32)
        parameter.grad = accelerator.reduce(own, reduction="sum")
