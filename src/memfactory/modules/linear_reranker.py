"""The module `linear_reranker`: RMM's reranker, two linear maps that learn from the memories that an answer cites.

It uses no model (arXiv 2503.08026, section 5). The maths is in `modules/linear_maps.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file

from memfactory.components import ModuleOptions
from memfactory.dialogue import Asking, LearningModule
from memfactory.episode import Episode
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.memory.bank import MemoryBank
from memfactory.memory.options import Search
from memfactory.modules.linear_maps import (
    Array,
    Estimator,
    ResidualMap,
    choose,
    identity,
    map_gradients,
    score_gradient,
    scores,
)
from memfactory.registry import MODULES
from memfactory.roles import Retriever
from memfactory.seeds import stream_seed
from memfactory.types import Codec, MemoryItem, Selection

MAPS = ("query", "memory")
LARGEST_SCORE = 1e6
"""Larger scores mean diverged maps: embeddings have length 1, so scores begin between -1 and 1."""


class LinearRerankerOptions(ModuleOptions):
    """Options of `linear_reranker`."""

    candidates: int = Field(20, ge=1)
    """Items that the search returns (K)."""
    keep: int = Field(5, ge=1)
    """The most items that remain after reranking (M)."""
    search: Search | None = None
    """The search for items: dense, bm25 or hybrid; null: the run's `memory.search`."""
    weights: str | None = None
    """Trained maps (a .safetensors that the trainer `online` wrote); null: identity maps."""
    rank: int | None = Field(None, ge=1)
    """The rank of new maps; null: full."""
    learning_rate: float = Field(1e-3, gt=0)
    """The step size along the mean gradient of a batch. RMM's 0.001 takes thousands of questions, 0.01 hundreds; at 0.1
    the scores can diverge."""
    estimator: Estimator = "paper"
    """The policy gradient: RMM's (paper), one with less variance (softmax), or the unbiased one (plackett_luce)."""
    temperature: float = Field(0.5, gt=0)
    """Divides the scores in the gradient of `estimator: paper`; the sample does not depend on it."""
    baseline: float = 0.5
    """Subtracted from the reward of a memory, which is 1 or -1."""
    signal: Literal["citations", "evidence"] = "citations"
    """The source of a memory's reward: the citations of the answer, or the gold evidence."""

    def without_effect(self) -> Mapping[str, str]:
        learnt = ("rank", "learning_rate", "estimator", "temperature", "baseline", "signal")
        return dict.fromkeys(learnt, "interface is inference") if self.interface == "inference" else {}


@MODULES.register("linear_reranker")
class LinearReranker(Retriever[LinearRerankerOptions], LearningModule[LinearRerankerOptions, tuple[MemoryItem, ...]]):
    """Reranks by linear maps of the embeddings, which learn from the memories that an answer cites."""

    def __init__(self, options: LinearRerankerOptions, codec: Codec) -> None:
        super().__init__(options, codec)
        self.maps: tuple[ResidualMap, ResidualMap] | None = None
        if self.options.weights is not None:
            self._load(Path(self.options.weights))

    def dialogue(self, episode: Episode, bank: MemoryBank) -> Asking[tuple[MemoryItem, ...]]:
        yield from ()
        options, question = self.options, episode.task.question
        items = [match.item for match in bank.search(question, options.candidates, mode=options.search)]
        episode.selection = None
        if not items:
            return ()
        texts = tuple(item.text for item in items)
        item_scores = self._scores(bank.embed_query(question), bank.embed(texts))
        noise = numpy.zeros(len(items))
        if self.learning:
            stream = numpy.random.default_rng(stream_seed(episode.seed, episode.index, "gumbel"))
            noise = stream.gumbel(size=len(items))
        chosen = choose(item_scores, noise, options.keep)
        episode.selection = Selection(question, texts, tuple(noise.tolist()), chosen)
        return tuple(items[place] for place in chosen)

    def learn(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """One step up the mean gradient of the episodes whose chosen memories have known rewards."""
        gradients: list[tuple[Array, ...]] = []
        useful: list[float] = []
        for episode in episodes:
            rewards = self.rewards(episode)
            if rewards is None or episode.selection is None or episode.bank is None:
                continue
            gradients.append(self._gradients(episode.bank, episode.selection, rewards - self.options.baseline))
            useful += (rewards > 0).tolist()
        metrics = {"skipped": 1 - len(gradients) / max(len(episodes), 1)}
        if not gradients:
            return metrics
        rate = self.options.learning_rate / len(gradients)
        columns = [numpy.stack(column) for column in zip(*gradients, strict=True)]
        before = self._maps(columns[0].shape[1])
        self.maps = before[0].moved(columns[0], columns[1], rate), before[1].moved(columns[2], columns[3], rate)
        norms = {
            f"update_{name}": _norm(outward, inward)
            for name, outward, inward in zip(MAPS, columns[::2], columns[1::2], strict=True)
        }
        return {"useful": fmean(useful), **metrics, **{name: rate * norm for name, norm in norms.items()}}

    def rewards(self, episode: Episode) -> Array | None:
        """1 or -1 for each chosen memory, [M]; None if they are unknown (a malformed citation skips the update)."""
        if episode.failure is not None or episode.selection is None:
            return None
        if self.options.signal == "evidence":
            gold = set(episode.task.evidence)
            helped = [not gold.isdisjoint(item.sources) for item in episode.retrieved] if gold else None
        else:
            cited = episode.citations
            helped = None if cited is None else [item.id in cited for item in episode.retrieved]
        return None if helped is None else numpy.where(helped, 1.0, -1.0)

    def state(self) -> dict[str, numpy.ndarray]:
        by_name = dict(zip(MAPS, self.maps or (), strict=False))
        return {
            f"{name}.{part}": array
            for name, linear_map in by_name.items()
            for part, array in (("left", linear_map.left), ("right", linear_map.right))
            if array is not None
        }

    def load_state(self, state: Mapping[str, numpy.ndarray]) -> None:
        """Restore the maps that `state` returned. Raises ValueError for anything else."""
        if not state:
            self.maps = None
            return
        if ({*state} ^ {"query.left", "memory.left"}) - {"query.right", "memory.right"}:
            raise ValueError(f"expected the arrays query.left and memory.left, perhaps with .right, got {[*state]}")
        arrays = {name: numpy.asarray(array, dtype=numpy.float64) for name, array in state.items()}
        query, memory = (ResidualMap(arrays[f"{name}.left"], arrays.get(f"{name}.right")) for name in MAPS)
        if query.dimensions != memory.dimensions:
            raise ValueError(f"one map is for {query.dimensions} numbers, the other for {memory.dimensions}")
        self.maps = query, memory

    def _load(self, path: Path) -> None:
        try:
            self.load_state(load_file(path))
        except (OSError, SafetensorError, ValueError) as error:
            raise ConfigError(f"linear_reranker: the weights {path} cannot be used: {error}") from None

    def _maps(self, dimensions: int) -> tuple[ResidualMap, ResidualMap]:
        """The maps, new ones at first. Raises ConfigError if they are for other vectors."""
        if self.maps is None:
            rank = self.options.rank
            self.maps = identity(dimensions, rank, 0), identity(dimensions, rank, 1)
        if self.maps[0].dimensions != dimensions:
            raise ConfigError(
                f"linear_reranker: the maps {self.options.weights or ''} are for vectors of {self.maps[0].dimensions} "
                f"numbers, but memory.embedder gives {dimensions}; use the embedder that they were trained with"
            )
        return self.maps

    def _scores(self, query: numpy.ndarray, memories: numpy.ndarray) -> Array:
        return scores(*self._maps(len(query)), query.astype(numpy.float64), memories.astype(numpy.float64))

    def _gradients(self, bank: MemoryBank, selection: Selection, advantages: Array) -> tuple[Array, ...]:
        """The four vectors of `map_gradients` for one selection."""
        options = self.options
        query = bank.embed_query(selection.query).astype(numpy.float64)
        memories = bank.embed(selection.texts).astype(numpy.float64)
        maps, noise = self._maps(len(query)), numpy.array(selection.noise)
        memory_scores = scores(*maps, query, memories)
        if not numpy.abs(memory_scores).max() <= LARGEST_SCORE:
            raise MemFactoryError(
                f"linear_reranker: scores have grown beyond {LARGEST_SCORE:g}; start again with a learning_rate below "
                f"{options.learning_rate:g}"
            )
        by_score = score_gradient(
            options.estimator, memory_scores, noise, selection.chosen, advantages, options.temperature
        )
        query_vectors, memory_vectors = map_gradients(*maps, query, memories, by_score)
        return (*query_vectors, *memory_vectors)


def _norm(outward: Array, inward: Array) -> float:
    """The norm of sum_b outer(outward[b], inward[b]) without the matrix: its square is the sum of the products of the
    inner products."""
    return float(numpy.sqrt(max(((outward @ outward.T) * (inward @ inward.T)).sum(), 0.0)))
