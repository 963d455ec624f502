"""RMM's reranker as pure maths: residual linear maps on embeddings, Gumbel sampling, REINFORCE in closed form
(arXiv 2503.08026). Arrays are float64.

Shapes: d numbers a vector, K candidates, M of them chosen, B samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

Array = NDArray[numpy.float64]
Estimator = Literal["paper", "softmax", "plackett_luce"]


@dataclass(frozen=True)
class ResidualMap:
    """x -> x + W x, where W is `left` [d, d], or `left` x `right`^T [d, r] x [r, d] if it is of low rank."""

    left: Array
    right: Array | None = None

    def __post_init__(self) -> None:
        shapes = [self.left.shape] if self.right is None else [self.left.shape, self.right.shape]
        square = len(self.left.shape) == 2 and (self.right is not None or self.left.shape[0] == self.left.shape[1])
        if not square or len(set(shapes)) > 1:
            raise ValueError(f"a residual map is one array [d, d] or two [d, r], got {shapes}")

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return int(self.left.shape[0])

    def __call__(self, vectors: Array) -> Array:
        """The mapped vectors, [..., d]."""
        inward = vectors if self.right is None else vectors @ self.right
        return vectors + inward @ self.left.T

    def moved(self, outward: Array, inward: Array, rate: float) -> ResidualMap:
        """The map after one step up the gradient of W that is the sum of outer(outward[b], inward[b]), [B, d] each.

        Of low rank, dW = G means dU = G V and dV = G^T U for W = U V^T.
        """
        if self.right is None:
            return ResidualMap(self.left + rate * (outward.T @ inward))
        left = self.left + rate * (outward.T @ (inward @ self.right))
        return ResidualMap(left, self.right + rate * (inward.T @ (outward @ self.left)))


def identity(dimensions: int, rank: int | None, seed: int = 0) -> ResidualMap:
    """The identity map: W = 0. Of low rank, U is 0 and V is random with E[V V^T] = identity, so that the first steps
    have the direction and the length of those at full rank."""
    if rank is None:
        return ResidualMap(numpy.zeros((dimensions, dimensions)))
    right = numpy.random.default_rng(seed).standard_normal((dimensions, rank)) / numpy.sqrt(rank)
    return ResidualMap(numpy.zeros((dimensions, rank)), right)


def scores(query_map: ResidualMap, memory_map: ResidualMap, query: Array, memories: Array) -> Array:
    """s_i = (q + W_q q) . (m_i + W_m m_i) for a query [d] and memories [K, d]: RMM's equation 1."""
    result: Array = memory_map(memories) @ query_map(query)
    return result


def choose(scores: Array, noise: Array, keep: int) -> tuple[int, ...]:
    """The places of the `keep` largest s + g, the largest first; of equal ones the first.

    With Gumbel noise g = -log(-log u) this is a sample without replacement from softmax(s). A temperature that divides
    s + g changes nothing, since the order stays.
    """
    return tuple(int(place) for place in numpy.argsort(-(scores + noise), kind="stable")[:keep])


def score_gradient(
    estimator: Estimator, scores: Array, noise: Array, chosen: tuple[int, ...], advantages: Array, temperature: float
) -> Array:
    """The gradient with respect to s [K] that REINFORCE climbs after sampling `chosen` with `advantages` [M].

    `advantages` are R_i - b of each chosen memory, in the order of `chosen`; A_j is 0 for a memory not chosen.
    paper: sum_i A_i log p_i with p = softmax((s + g) / t), so (A_j - p_j sum A) / t: RMM's equations 2 and 3.
    softmax: the same with p = softmax(s) and t = 1: nearly the direction of E[sum R], with the least variance.
    plackett_luce: (sum A) log P(sample), P = prod_k softmax(s over those not sampled before k) at place k: unbiased.
    If all K are chosen, P = 1 for any s, and the gradient is 0.
    """
    if len(chosen) >= len(scores):
        return numpy.zeros_like(scores)
    total = float(advantages.sum())
    if estimator == "plackett_luce":
        return total * _sample_gradient(scores, chosen)
    per_score = numpy.zeros_like(scores)
    per_score[list(chosen)] = advantages
    if estimator == "softmax":
        return per_score - softmax(scores) * total
    return (per_score - softmax((scores + noise) / temperature) * total) / temperature


def _sample_gradient(scores: Array, chosen: tuple[int, ...]) -> Array:
    """The gradient with respect to s of the log-probability of sampling `chosen` in its order: at each place 1 for the
    sampled one, minus the softmax over the remaining ones."""
    gradient = numpy.zeros_like(scores)
    remaining = scores.copy()
    for place in chosen:
        gradient -= softmax(remaining)
        gradient[place] += 1
        remaining[place] = -numpy.inf
    return gradient


def softmax(values: Array) -> Array:
    """exp(v) over its sum, without overflow; -inf gives 0."""
    weights: Array = numpy.exp(values - values.max())
    return weights / weights.sum()


def map_gradients(
    query_map: ResidualMap, memory_map: ResidualMap, query: Array, memories: Array, by_score: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The gradients of W_q and W_m for dS [K], each as the two vectors [d] whose outer product it is.

    dW_q = outer(sum_j dS_j m'_j, q), dW_m = outer(q', sum_j dS_j m_j), where ' is after the map.
    """
    return (by_score @ memory_map(memories), query), (query_map(query), by_score @ memories)
