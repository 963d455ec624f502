"""Prints the tables of docs/benchmarks/retrieval.md: benchmarks.retrieval LOCOMO.json [--split S] [--sizes N...].

Every turn of a conversation is one item of a memory bank; a question should find the turns that are its gold evidence.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from memfactory.data.benchmarks.locomo import LocomoDataset, LocomoOptions
from memfactory.data.benchmarks.locomo_source import CATEGORIES
from memfactory.memory.bank import BankSource
from memfactory.memory.index import VectorIndex
from memfactory.memory.options import LexicalEmbedderConfig, MemoryConfig, Search
from memfactory.types import MemoryItem

DEPTHS = (5, 10, 30)
MODES: tuple[Search, ...] = ("dense", "bm25", "hybrid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="locomo10.json")
    parser.add_argument("--split", default="all", help="train (conv-26), val (conv-30), test (the other eight) or all")
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 1000, 10_000, 100_000], help="vectors to search")
    args = parser.parse_args()
    print_recall(args.path, args.split)
    if args.sizes:
        print()
        print_seconds(args.sizes)


def print_recall(path: Path, split: str) -> None:
    """The recall of each question's gold evidence among the first items, as means over the questions."""
    recalls_by_category, seconds = recalls(path, split, MemoryConfig())
    print("| questions | n | " + " | ".join(f"{mode} @{depth}" for mode in MODES for depth in DEPTHS) + " |")
    print("|---|--:|" + "--:|" * len(MODES) * len(DEPTHS))
    for category, name in [*CATEGORIES.items(), (None, "all")]:
        rows = [row for one, row in recalls_by_category if category in (None, one)]
        if rows:
            means = numpy.mean(rows, axis=0)
            print(f"| {name} | {len(rows)} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    print(
        "\nms a question: "
        + ", ".join(f"{mode} {1000 * took / len(recalls_by_category):.2f}" for mode, took in seconds.items())
    )


def recalls(path: Path, split: str, config: MemoryConfig) -> tuple[list[tuple[int, list[float]]], dict[Search, float]]:
    """Of each question its category and the recalls (by mode, then by depth); of each mode the seconds it took."""
    source = BankSource(config)
    banks: dict[int, Any] = {}
    recalls_by_category: list[tuple[int, list[float]]] = []
    seconds: dict[Search, float] = defaultdict(float)
    for row in LocomoDataset(LocomoOptions(path=str(path), split=split), Path()).rows():
        values: Any = row.values
        if not values["evidence"]:
            continue
        turns = values["conversation"]
        if id(turns) not in banks:
            banks[id(turns)] = source.open([item_of(number, turn) for number, turn in enumerate(turns)])
            for mode in MODES:
                # The first search indexes the bank, which is not a cost of a question.
                banks[id(turns)].search("a", 1, mode=mode)
        gold = set(values["evidence"])
        recall = []
        for mode in MODES:
            begin = time.perf_counter()
            hits = banks[id(turns)].search(values["question"], max(DEPTHS), mode=mode)
            seconds[mode] += time.perf_counter() - begin
            for depth in DEPTHS:
                recall.append(len(gold & {hit.item.sources[0] for hit in hits[:depth]}) / len(gold))
        recalls_by_category.append((values["category"], recall))
    return recalls_by_category, seconds


def item_of(number: int, turn: dict[str, str]) -> MemoryItem:
    return MemoryItem(
        f"t{number}", "", f"{turn['speaker']}: {turn['text']}", sources=(turn["dia_id"],), created_at=turn["timestamp"]
    )


def print_seconds(sizes: Sequence[int], k: int = 10) -> None:
    """Milliseconds a query over random unit vectors as long as the lexical ones, the median of 21."""
    dimensions = LexicalEmbedderConfig().dimensions
    print(f"| vectors of {dimensions} | numpy, ms | faiss, ms | faiss, first query, ms |")
    print("|--:|--:|--:|--:|")
    for size in sizes:
        generator = numpy.random.default_rng(size)
        vectors = generator.standard_normal((size, dimensions), numpy.float32)
        vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
        queries = vectors[random.Random(size).choices(range(size), k=21)] + vectors[:1]
        medians, firsts = [], []
        for backend in ("numpy", "faiss"):
            index = VectorIndex(vectors, backend)
            took = []
            for query in [queries[0], *queries]:
                begin = time.perf_counter()
                index.search(query, k)
                took.append(time.perf_counter() - begin)
            firsts.append(1000 * took[0])
            medians.append(1000 * float(numpy.median(took[1:])))
        print(f"| {size:,} | {medians[0]:.2f} | {medians[1]:.2f} | {firsts[1]:.1f} |")


if __name__ == "__main__":
    main()
