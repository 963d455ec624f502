"""The models that the sections load: published architectures with random weights, and one of miniature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.gpu.check import Check
from benchmarks.workloads import Size, write_model
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig

LARGE, MEDIUM = "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-1.7B"
MINIATURE = Size(2, 64, 96, heads=2, kv_heads=1, head_dim=32, vocabulary=2500)
# From this on the 4B model can be trained whole.
LARGE_GPU = 60 * 2**30


@dataclass(frozen=True)
class Subject:
    """The model of a section: its name, and the folder with its config and a tokenizer."""

    name: str
    folder: Path

    def config(self, check: Check, *, fused: bool = True) -> ModelConfig:
        """The model in bfloat16 on the device of the check."""
        device = str(check.device)
        return ModelConfig(
            path=str(self.folder), dtype="bfloat16", device=device, random_weights=True, fused_layers=fused
        )

    def loaded(
        self, check: Check, *, masters: str = "float32", frozen: bool = False, fused: bool = True
    ) -> tuple[PreTrainedModel, ChatFormat]:
        """The model with weights of type `masters`, or `frozen` in bfloat16 below adapters; and its chat format."""
        config = self.config(check, fused=fused)
        return load_model(config, training=True, masters=masters, frozen_base=frozen), load_chat(config)


def subject(check: Check) -> Subject:
    """The 4B model where it fits, the 1.7B one on a smaller GPU."""
    if check.small:
        return Subject("miniature", write_model(check.folder / "model", MINIATURE))
    name = LARGE if check.memory >= LARGE_GPU else MEDIUM
    return Subject(name.rpartition("/")[2].removesuffix("-Instruct-2507"), write_model(check.folder / "model", name))
