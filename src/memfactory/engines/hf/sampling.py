"""Sampling the next token of many rows at once, each from its own random stream. Pure tensor functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memfactory.types import SamplingParams

_BLOCK = 64
# The numbers of one tensor [rows, vocabulary] while a CPU samples.
_CPU_NUMBERS = 2**20


def uniforms(seed: int) -> Iterator[float]:
    """The endless stream of numbers in [0, 1) of `seed`; multiples of 2^-24."""
    generator = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1)))
    while True:
        yield from generator.random(_BLOCK, dtype=np.float32).tolist()


@dataclass(frozen=True)
class SamplingBatch:
    """The sampling parameters of n rows as tensors; None for one that no row uses.

    `temperature` [n, 1] (1 in greedy rows), `greedy` [n], `top_k` [n, 1] (the size of the vocabulary if off), `top_p`
    [n, 1].
    """

    temperature: Tensor | None
    greedy: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[SamplingParams], vocabulary: int, device: torch.device) -> SamplingBatch:
        """The tensors of the parameters of `rows`."""

        def column(values: list[float], off: float) -> Tensor | None:
            # None and no tensor of 1s: a division by 1 over the vocabulary is not free, and neither is a sort.
            if all(value == off for value in values):
                return None
            return torch.tensor(values, device=device).unsqueeze(-1)

        greedy = [row.temperature == 0 for row in rows]
        return cls(
            column([row.temperature or 1.0 for row in rows], 1.0),
            torch.tensor(greedy, device=device) if any(greedy) else None,
            column([row.top_k or vocabulary for row in rows], vocabulary),
            column([row.top_p for row in rows], 1.0),
        )

    def part(self, place: slice) -> SamplingBatch:
        """The parameters of some of the rows."""
        columns = (self.temperature, self.greedy, self.top_k, self.top_p)
        return SamplingBatch(*(None if column is None else column[place] for column in columns))


def sample_tokens(logits: Tensor, batch: SamplingBatch, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the distribution's cumulative sum at `uniform`.

    logits [n, V] float32, uniform [n] float64 in [0, 1). The results are ids [n] and their log-probabilities [n] under
    the row's own distribution: at its temperature and, after a cut by top-k or top-p, renormalised over the tokens
    left. A greedy row takes the likeliest token with certainty: log-probability 0.
    """
    # On a CPU some rows at a time: for all of them the memory of a large vocabulary would come fresh from the system.
    rows = len(logits) if logits.device.type != "cpu" else max(1, _CPU_NUMBERS // logits.shape[-1])
    if len(logits) <= rows:
        return _sample(logits, batch, uniform)
    places = [slice(first, first + rows) for first in range(0, len(logits), rows)]
    ids, logprobs = zip(*(_sample(logits[place], batch.part(place), uniform[place]) for place in places), strict=True)
    return torch.cat(ids), torch.cat(logprobs)


def _sample(logits: Tensor, batch: SamplingBatch, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """`sample_tokens` of all rows at once."""
    logprobs = torch.log_softmax(logits if batch.temperature is None else logits / batch.temperature, -1)
    if batch.top_k is not None or batch.top_p is not None:
        logprobs = _cut(logprobs, batch)
    # float64: a float32 sum over a large vocabulary ends visibly off 1, and its last tokens would never be sampled.
    cumulative = torch.cumsum(logprobs.exp(), -1, dtype=torch.float64)
    # right=True: the first token whose cumulative probability exceeds the target, never one of probability 0.
    ids = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * cumulative[:, -1:], right=True)
    # Only logits that are not finite lead beyond the end; the caller notices by their log-probability.
    ids = ids.clamp_(max=logits.shape[-1] - 1)
    chosen = logprobs.gather(-1, ids).squeeze(-1)
    ids = ids.squeeze(-1)
    if batch.greedy is not None:
        ids = torch.where(batch.greedy, logits.argmax(-1), ids)
        chosen = torch.where(batch.greedy & chosen.isfinite(), 0.0, chosen)
    return ids, chosen


def _cut(logprobs: Tensor, batch: SamplingBatch) -> Tensor:
    """Keep each row's top_k likeliest tokens, of these the fewest that hold top_p, and renormalise."""
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    if batch.top_k is not None:
        ranks = torch.arange(logprobs.shape[-1], device=logprobs.device)
        ordered = ordered.masked_fill(ranks >= batch.top_k, -torch.inf).log_softmax(-1)
    if batch.top_p is not None:
        mass = ordered.exp()
        # The mass before a token and not with it: the token that crosses top_p stays, so at least one always does.
        ordered = ordered.masked_fill(mass.cumsum(-1) - mass >= batch.top_p, -torch.inf)
    return torch.full_like(logprobs, -torch.inf).scatter_(-1, order, ordered).log_softmax(-1)
