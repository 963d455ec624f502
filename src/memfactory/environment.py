"""The environment of a run: versions, commit, hardware. Nothing is imported for it and no network is touched."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("memfactory")
TOOL_TIMEOUT = 10.0
"""Seconds for a tool to describe the machine."""
PACKAGES = (
    "memfactory",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "datasets",
    "vllm",
    "flash-attn",
    "bitsandbytes",
    "torchao",
    "liger-kernel",
    "faiss-cpu",
    "swanlab",
    "omegaconf",
    "pydantic",
    "numpy",
)


def process_count() -> int:
    """The number of processes that torchrun or `accelerate launch` started; 1 for a process on its own."""
    size = os.environ.get("WORLD_SIZE", "1")
    return max(1, int(size)) if size.isdecimal() else 1


def process_rank() -> int:
    """The rank of this process among them; a process on its own ignores a RANK that was left over."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and process_count() > 1 else 0


def package_versions() -> dict[str, str | None]:
    """The installed version of each package that matters; None for one that is not installed."""
    # The command line imports this file at its start, for the rank alone.
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout around `folder`, with "-dirty" for uncommitted changes; None outside of one."""
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    return (
        f"{commit}-dirty" if commit and _output("git", "-C", str(folder), "status", "--porcelain", "-uno") else commit
    )


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each NVIDIA GPU, as nvidia-smi says."""
    output = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    rows = [line.split(", ") for line in (output or "").splitlines()]
    return [dict(zip(("name", "memory", "driver"), row, strict=False)) for row in rows]


def _output(tool: str, *words: str) -> str | None:
    """The output of a tool; None if it is missing, fails, or does not answer in time.

    One that hangs in the kernel cannot even be killed, so nobody waits for its end.
    """
    path = shutil.which(tool)
    if path is None:
        return None
    try:
        process = subprocess.Popen(
            [path, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return None
    try:
        out, _ = process.communicate(timeout=TOOL_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        log.warning("%s has not answered within %g seconds, so its output is left out", tool, TOOL_TIMEOUT)
        return None
    return out.decode(errors="replace").strip() if process.returncode == 0 else None


def memory_bytes() -> int | None:
    """The machine's memory in bytes; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def describe_environment() -> Mapping[str, object]:
    """Versions, commit and hardware, ready for JSON."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus(),
        "packages": package_versions(),
        "git_commit": git_commit(Path(__file__).parent),
    }
