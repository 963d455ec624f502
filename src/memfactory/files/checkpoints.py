"""Checkpoint folders on disk: their names, the files each must hold, and which is the newest intact one."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from memfactory.files.folders import MARKER, difference, read_marker

TRAINING_ONLY = ("optimizer.pt",)
"""Large files of a checkpoint that its model does not need."""
STATE_FILES = ("state.json", "random.json", "optimizer.pt")
"""The files of every checkpoint beside its weights."""
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "shards/.metadata",
)
SHARDS = "shards"
"""The folder of the weights and moments of a sharded policy, in the files of torch.distributed.checkpoint."""
MODULES = "modules"
"""The folder of the weights that modules have of their own; empty before any has learnt."""
_CHECKPOINT = re.compile(r"step-(0|[1-9][0-9]*)")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, by name alone. Links and other names are not ours."""
    named = [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)] if folder.is_dir() else []
    real = [path for path in named if path.is_dir() and not path.is_symlink()]
    return sorted(real, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_intact(folder: Path, *, ignore: Collection[str] = ()) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint in `folder` (None: there is none), and a message for each later damaged one."""
    problems: list[str] = []
    for path in reversed(checkpoints(folder)):
        reason = checkpoint_damage(path, ignore=ignore)
        if reason is None:
            return path, problems
        problems.append(f"{path} cannot be used: {reason}")
    return None, problems


def checkpoint_damage(folder: Path, *, ignore: Collection[str] = ()) -> str | None:
    """As `folders.damage`, and the marker must also list the files that every checkpoint has."""
    digests = read_marker(folder)
    if isinstance(digests, str):
        return digests
    for name in STATE_FILES:
        if name not in digests and name not in ignore:
            return f"its file {MARKER} does not list {name}"
    if not any(name in digests for name in WEIGHT_FILES) and not (folder / MODULES).is_dir():
        return f"its file {MARKER} lists no weights (model.safetensors, adapter_model.safetensors)"
    return difference(folder, digests, ignore)
