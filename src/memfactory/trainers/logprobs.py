"""Log-probabilities from hidden states in chunks, so that [tokens, vocabulary] is never whole in memory.

It knows neither rows nor positions: state n is the one that predicts target n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]


def chunked_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    *,
    vocabulary: int | None = None,
    temperature: float = 1.0,
    chunk_tokens: int = 2048,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(head(hidden) / temperature) at the targets, and the distributions' entropies without a gradient.

    The distribution is over the first `vocabulary` ids (None: all); a head can have rows that stand for no token.
    `hidden` [N, width], `targets` [N] ids; both results are [N] in nats, float32 at least. Logits exist for
    `chunk_tokens` tokens at a time, in the backward pass too: there they are computed again. N may be 0.
    """
    distribution = Distribution(head, vocabulary, temperature, with_entropy)
    logprobs, entropies = [hidden.new_zeros(0, dtype=_precise(hidden.dtype))], []
    for states, ids in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
        if torch.is_grad_enabled():
            values, entropy = checkpoint(_chunk, states, ids, distribution, use_reentrant=False)
        else:
            values, entropy = _chunk(states, ids, distribution)
        logprobs.append(values)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy and len(targets) else None


@dataclass(frozen=True)
class Distribution:
    """How logits become probabilities."""

    head: Head
    vocabulary: int | None
    temperature: float
    with_entropy: bool


def _chunk(hidden: Tensor, targets: Tensor, distribution: Distribution) -> tuple[Tensor, Tensor | None]:
    logits = distribution.head(hidden)[:, : distribution.vocabulary]
    logits = logits.to(_precise(logits.dtype))
    if distribution.temperature != 1:
        logits = logits / distribution.temperature
    normalizer = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normalizer
    if not distribution.with_entropy:
        return logprobs, None
    with torch.no_grad():
        # The entropy comes last, so the backward pass, which stops recomputing once it has what it needs, skips it.
        probabilities = (logits - normalizer[:, None]).exp()
        return logprobs, normalizer - (probabilities * logits).sum(-1)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
