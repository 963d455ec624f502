"""Sharded weights and moments in a checkpoint, through torch.distributed.checkpoint: each process writes its own part.

They are read by any number of processes. The file knows no policy: weights come by name, with their optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from memfactory.errors import MemFactoryError
from memfactory.files.checkpoints import SHARDS

MOMENTS = ("exp_avg", "exp_avg_sq")


@torch.no_grad()
def write_shards(
    folder: Path, weights: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> None:
    """Write weights and moments to `folder`; all processes must call it.

    `weights` are the sharded ones by name, `trained` the parameters of `optimizer` over this process's shards.
    """
    state: dict[str, Tensor] = {}
    for name, weight in weights.items():
        state[f"weights/{name}"] = weight.detach()
        for key, value in optimizer.state.get(trained[name], {}).items():
            state[f"{key}/{name}"] = _as_shard(value, weight) if key in MOMENTS else value
    save(state, checkpoint_id=folder / SHARDS)


@torch.no_grad()
def read_shards(
    folder: Path, weights: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> None:
    """Copy the files of `write_shards`, by any number of processes, into weights and optimizer; all must call it.

    Plain tensors are read whole. Raises MemFactoryError for shards of another model.
    """
    saved = FileSystemReader(folder / SHARDS).read_metadata().state_dict_metadata
    sizes = {name: tuple(getattr(entry, "size", ())) for name, entry in saved.items()}
    expected = {f"weights/{name}": tuple(weight.shape) for name, weight in weights.items()}
    strange = [name for name, shape in expected.items() if sizes.get(name) != shape]
    strange += [name for name in sizes if name.startswith("weights/") and name not in expected]
    if strange:
        raise MemFactoryError(
            f"the weights in {folder / SHARDS} are not those of this model: {len(strange)} tensors differ (such as "
            f"{strange[0].removeprefix('weights/')})"
        )
    groups = {id(own): group for group in optimizer.param_groups for own in group["params"]}
    state: dict[str, Tensor] = {}
    for name, weight in weights.items():
        state[f"weights/{name}"] = weight.detach()
        own = trained[name]
        count = torch.tensor(0.0, device=step_device(groups[id(own)], own))
        for key in (*MOMENTS, "step"):
            if f"{key}/{name}" in sizes:
                value = torch.zeros_like(own, dtype=torch.float32) if key in MOMENTS else count
                optimizer.state[own][key] = value
                state[f"{key}/{name}"] = _as_shard(value, weight) if key in MOMENTS else value
    load(state, checkpoint_id=folder / SHARDS, no_dist=not torch.distributed.is_initialized())


@torch.no_grad()
def take_shard(target: Tensor, whole: Tensor) -> None:
    """Copy this process's part of `whole` into the sharded `target`; nothing is sent."""
    if not isinstance(target, DTensor):
        target.copy_(whole)
        return
    mesh, placements = target.device_mesh, target.placements
    part: DTensor = distribute_tensor(whole.to(target.device), mesh, placements, src_data_rank=None)
    target.to_local().copy_(part.to_local())


def step_device(group: Mapping[str, Any], own: nn.Parameter) -> torch.device:
    """Where AdamW keeps the number of steps of `own`: a fused or capturable kernel reads it on the device of `own`."""
    return own.device if group.get("fused") or group.get("capturable") else torch.device("cpu")


def sharded_state(
    state: Mapping[str, Tensor], own: nn.Parameter, weight: Tensor, group: Mapping[str, Any]
) -> dict[str, Tensor]:
    """This process's part of AdamW's state of a whole weight, for `own` of `group`, its shard of `weight`.

    Raises MemFactoryError for the state of an optimizer of another kind.
    """
    if not {"step", *MOMENTS} <= state.keys():
        raise MemFactoryError(
            "the checkpoint's optimizer is not adamw, and the moments of others cannot be sharded; resume it with "
            "train.shard: none"
        )
    moments = {key: torch.zeros_like(own, dtype=torch.float32) for key in MOMENTS}
    for key, value in moments.items():
        take_shard(_as_shard(value, weight), state[key])
    return {"step": state["step"].to(step_device(group, own), copy=True), **moments}


def _as_shard(value: Tensor, weight: Tensor) -> Tensor:
    """A moment as the shard of a tensor that is spread like `weight`; itself where that is whole."""
    if not isinstance(weight, DTensor):
        return value
    return DTensor.from_local(
        value, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )
