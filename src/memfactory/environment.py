"""What a run ran on: versions, commit, hardware. Nothing is imported for it and no network is touched."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

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
    "openai",
    "swanlab",
    "omegaconf",
    "pydantic",
    "numpy",
)


def process_count() -> int:
    """How many processes torchrun or `accelerate launch` started; 1 for a process on its own."""
    size = os.environ.get("WORLD_SIZE", "1")
    return max(1, int(size)) if size.isdecimal() else 1


def process_rank() -> int:
    """Which of those processes this is. A RANK that was left over from elsewhere, in a process on its own, is none."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and process_count() > 1 else 0


def package_versions() -> dict[str, str | None]:
    """The installed version of each package that matters; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout around `folder`, with "-dirty" for uncommitted changes; None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and ask("status", "--porcelain", "-uno") else commit


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each NVIDIA GPU, as nvidia-smi says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run([tool, *query], capture_output=True, text=True, timeout=20)
    rows = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [dict(zip(("name", "memory", "driver"), row, strict=False)) for row in rows]


def memory_bytes() -> int | None:
    """The machine's memory in bytes, where the system says it."""
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
