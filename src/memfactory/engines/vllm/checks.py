"""Checks that vLLM can run here: its version, its platform, and the number of the run's processes."""

from __future__ import annotations

import importlib.util
import logging

from memfactory.engines.options import VllmEngineConfig
from memfactory.environment import process_count
from memfactory.errors import ConfigError
from memfactory.model.gguf_file import against_vllm, is_gguf
from memfactory.model.options import ModelConfig

log = logging.getLogger("memfactory")
# The first version with every call that is made here, and the newest that was read for it.
OLDEST, NEWEST = (0, 24), (0, 33)
FIRST_GPU = ("auto", "cuda", "cuda:0")
"""The values of `model.device` that mean the GPU which vLLM takes."""
# The ranks that vLLM has room for.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def check_installed() -> None:
    """Raise ConfigError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine: kind 'vllm' needs the package vllm, which is not installed: pip install 'memfactory[vllm]' "
            f"({_fitting()}). Kind 'hf' needs nothing more"
        )


def check_version(installed: str) -> None:
    """Refuse a version that is too old; warn of one that nobody has tried."""
    version = as_version(installed)
    if version < OLDEST:
        raise ConfigError(f"engine: vllm {installed} is too old: {_fitting()}")
    if version > NEWEST:
        log.warning("vllm %s is newer than the versions that the engine was written for (%s)", installed, _fitting())


def as_version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version.

    >>> as_version("0.32.0+cpu")
    (0, 32)
    """
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def check_format(path: str) -> None:
    """Raise ConfigError for a model in a GGUF file."""
    if is_gguf(path):
        raise ConfigError(f"model.path: {against_vllm(path)}")


def check_one_process() -> None:
    """Raise ConfigError in a run of several processes: each would sync weights to an engine that knows of one
    process."""
    if process_count() > 1:
        raise ConfigError(
            "engine: kind 'vllm' serves a run of one process; start it without torchrun or accelerate, or write "
            "engine.kind: vllm_server or hf"
        )


def prepare_platform(model: ModelConfig, config: VllmEngineConfig) -> None:
    """Refuse a machine that vLLM cannot run on."""
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        raise ConfigError("engine: kind 'vllm' finds no GPU that this build of vLLM can use; kind 'hf' runs anywhere")
    if not current_platform.is_cpu():
        if model.device not in FIRST_GPU:
            raise ConfigError(
                f"model.device: {model.device!r} is not where vLLM runs: it takes the first GPU that it sees. Write "
                "model.device: cuda and choose the GPU with CUDA_VISIBLE_DEVICES"
            )
        return
    if config.sleep:
        raise ConfigError("engine: vLLM cannot sleep on the CPU; write engine.sleep: false")
    unpack_linear_layers()


def unpack_linear_layers() -> None:
    """Have vLLM's CPU build keep its linear layers as they are loaded.

    Packed, they would keep their old weights through every update, without a word.
    """
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False


def lora_room(rank: int) -> int:
    """The smallest rank that vLLM has room for and that holds `rank`; ConfigError for a larger rank."""
    fitting = [room for room in LORA_RANKS if room >= rank]
    if not fitting:
        raise ConfigError(
            f"train.lora.rank: vLLM takes adapters up to rank {LORA_RANKS[-1]}, not {rank}; write "
            "engine.adapter: merged"
        )
    return fitting[0]


def _fitting() -> str:
    return f"versions {dotted_version(OLDEST)} to {dotted_version(NEWEST)} fit"


def dotted_version(version: tuple[int, int]) -> str:
    """A version as text."""
    return ".".join(map(str, version))
