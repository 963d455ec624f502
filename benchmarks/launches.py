"""Counts the kernels of a decoding step on a GPU without one: python -m benchmarks.launches [--layers N] [--json FILE].

The HF engine decodes groups of prompts of memory_agent on an emulated GPU (benchmarks/emulated_cuda.py), with two and
with four narrow layers of Qwen3. Kernels a layer are half the difference, so the table holds for any number of layers.
In the first chunk the prompts of a group are equal; later each row has a memory of its own. Launches are counted, not
timed. See docs/benchmarks/speed.md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.emulated_cuda import DEVICE, emulated_cuda, on_cuda
from benchmarks.workloads import Size, write_model
from memfactory.config.optimizer import LoraOptions
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.formats.recurrent_prompts import UPDATE_PROMPT
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.weights import trainable
from memfactory.text import fill
from memfactory.types import Message, Sampling

WEIGHTS = ("float32", "bfloat16", "LoRA")
CHUNKS = ("first", "later")
WORDS = [
    "the",
    "city",
    "of",
    "ships",
    "is",
    "on",
    "a",
    "river",
    "and",
    "people",
    "there",
    "work",
    "at",
    "night",
    "in",
    "old",
    "houses",
]
# The step that is counted: prefill and the model's trial are over, and no row has ended.
STEP = 3


@dataclass(frozen=True)
class Launches:
    """Kernels of one decoding step: of each layer, and of all else; with `layers` layers, `total`."""

    weights: str
    chunk: str
    per_layer: float
    besides: float
    layers: int

    @property
    def total(self) -> float:
        """Kernels of a step of the whole model."""
        return self.besides + self.layers * self.per_layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=36, help="the layers of the model that the total is for")
    parser.add_argument("--rows", type=int, default=16, help="rows of each of four groups")
    parser.add_argument("--json", type=Path, help="write the counts there")
    arguments = parser.parse_args()
    counts = list(counted(arguments.layers, arguments.rows))
    print(table(counts))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(count) for count in counts], indent=1), encoding="utf-8")


def counted(layers: int, rows: int = 16, weights: Sequence[str] = WEIGHTS) -> Iterator[Launches]:
    """The kernels of a step for each kind of `weights`, in the first chunk and later."""
    with tempfile.TemporaryDirectory() as place:
        folders = [
            write_model(Path(place) / str(count), Size(count, 64, 128, heads=8, kv_heads=2, head_dim=16))
            for count in (2, 4)
        ]
        for kind in weights:
            for chunk in CHUNKS:
                two, four = (step_kernels(folder, kind, chunk, rows) for folder in folders)
                per_layer = (four - two) / 2
                yield Launches(kind, chunk, per_layer, two - 2 * per_layer, layers)


def step_kernels(folder: Path, weights: str, chunk: str, rows: int) -> int:
    """The kernels of one decoding step of four groups of `rows` rows."""
    config = ModelConfig(path=str(folder), dtype="bfloat16", device="cpu", random_weights=True)
    masters = "float32" if weights == "float32" else "bfloat16"
    model: Any = load_model(config, training=True, masters=masters, frozen_base=weights == "LoRA")
    if weights == "LoRA":
        model = trainable(model, LoraOptions(rank=8), torch.bfloat16, 0).get_base_model()
    with emulated_cuda():
        engine = HfEngine(on_cuda(model), load_chat(config), HfEngineConfig(), compute_dtype=torch.bfloat16)
        for key, prompt in enumerate(prompts(chunk, rows)):
            engine.submit(key, [Message("user", prompt)], Sampling(STEP + 3, seed=key))
        for _ in range(STEP + 1):
            DEVICE.reset()
            engine.step()
        total = DEVICE.kernels.total()
        engine.cancel()
    return total


def prompts(chunk: str, rows: int) -> Iterator[str]:
    """Update prompts of four groups; in a later chunk each row's memory has a length of its own."""
    draw = random.Random(0)
    for _ in range(4):
        question, section = (" ".join(draw.choices(WORDS, k=60)) for _ in range(2))
        for row in range(rows):
            memory = "none" if chunk == "first" else " ".join(draw.choices(WORDS, k=20 + row))
            yield fill(UPDATE_PROMPT, {"question": question, "memory": memory, "section": section})


def table(counts: Sequence[Launches]) -> str:
    """The counts as a table of Markdown."""
    rows = ["| weights | chunk | of a layer | besides | a step |", "|---|---|--:|--:|--:|"]
    rows += [
        f"| {count.weights} | {count.chunk} | {count.per_layer:g} | {count.besides:g} | {count.total:,.0f} |"
        for count in counts
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
