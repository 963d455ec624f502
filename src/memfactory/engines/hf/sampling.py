"""Drawing the next token of many rows at once, each from its own random stream. Pure tensor functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memfactory.types import SamplingParams

_BLOCK = 64


def uniforms(seed: int) -> Iterator[float]:
    """The endless stream of numbers in [0, 1) that `seed` names; multiples of 2^-24."""
    generator = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1)))
    while True:
        yield from generator.random(_BLOCK, dtype=np.float32).tolist()


@dataclass(frozen=True)
class Drawing:
    """How each of n rows is drawn, as tensors; None where no row needs that step.

    `temperature` [n, 1] (1 in greedy rows), `greedy` [n], `top_k` [n, 1] (the vocabulary where it is off),
    `top_p` [n, 1].
    """

    temperature: Tensor | None
    greedy: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None

    @classmethod
    def of(cls, decodings: Sequence[SamplingParams], vocabulary: int, device: torch.device) -> Drawing:
        """The tensors of `decodings`, one a row."""

        def column(values: list[float], off: float) -> Tensor | None:
            if all(value == off for value in values):
                return None
            return torch.tensor(values, device=device).unsqueeze(-1)

        greedy = [sampling_params.temperature == 0 for sampling_params in decodings]
        return cls(
            column([sampling_params.temperature or 1.0 for sampling_params in decodings], 1.0),
            torch.tensor(greedy, device=device) if any(greedy) else None,
            column([sampling_params.top_k or vocabulary for sampling_params in decodings], vocabulary),
            column([sampling_params.top_p for sampling_params in decodings], 1.0),
        )


def draw(logits: Tensor, drawing: Drawing, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the distribution's cumulative sum at `uniform`.

    logits [n, V] float32, uniform [n] float64 in [0, 1); the answer is ids [n] and their log-probabilities [n] under
    the distribution that was drawn from: at the row's temperature and, where top-k or top-p cut tokens off,
    renormalised over the rest. A greedy row takes the likeliest token with certainty: log-probability 0.
    """
    logprobs = torch.log_softmax(logits if drawing.temperature is None else logits / drawing.temperature, -1)
    if drawing.top_k is not None or drawing.top_p is not None:
        logprobs = _cut(logprobs, drawing)
    cumulative = torch.cumsum(logprobs.exp(), -1, dtype=torch.float64)
    # right=True: the first token whose cumulative probability exceeds the target, never one of probability 0.
    ids = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * cumulative[:, -1:], right=True)
    # Only logits that are not finite lead beyond the end; the caller sees their log-probability.
    ids = ids.clamp_(max=logits.shape[-1] - 1)
    chosen = logprobs.gather(-1, ids).squeeze(-1)
    ids = ids.squeeze(-1)
    if drawing.greedy is not None:
        ids = torch.where(drawing.greedy, logits.argmax(-1), ids)
        chosen = torch.where(drawing.greedy & chosen.isfinite(), 0.0, chosen)
    return ids, chosen


def _cut(logprobs: Tensor, drawing: Drawing) -> Tensor:
    """Keep each row's top_k likeliest tokens, of these the fewest that hold top_p, and renormalise."""
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    if drawing.top_k is not None:
        ranks = torch.arange(logprobs.shape[-1], device=logprobs.device)
        ordered = ordered.masked_fill(ranks >= drawing.top_k, -torch.inf).log_softmax(-1)
    if drawing.top_p is not None:
        mass = ordered.exp()
        ordered = ordered.masked_fill(mass.cumsum(-1) - mass >= drawing.top_p, -torch.inf)
    return torch.full_like(logprobs, -torch.inf).scatter_(-1, order, ordered).log_softmax(-1)
