"""Log-probabilities from hidden states in chunks, so that [tokens, vocabulary] is never whole in memory.

Logits of 16,000 tokens over a vocabulary of 150,000 are 10 GB in float32, and autograd would keep several such tensors.

It knows neither rows nor positions: state n predicts target n (see `layout.py`). A plain linear head has a gradient
written by hand; any other goes through checkpoints, which compute each chunk's logits again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memfactory.model.linear import add_products, is_linear, multiply

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Distribution:
    """softmax(logits / temperature) over the first `vocabulary` ids (None: all): a head can have rows without a token.

    Logits exist for `chunk_tokens` tokens at a time.
    """

    vocabulary: int | None = None
    temperature: float = 1.0
    chunk_tokens: int = 2048
    with_entropy: bool = False
    entropy_gradient: bool = False


def chunked_logprobs(
    hidden: Tensor, targets: Tensor, head: Head, distribution: Distribution
) -> tuple[Tensor, Tensor | None]:
    """log softmax(head(hidden) / temperature) at the targets, and the distributions' entropies.

    Shapes: `hidden` Float[N, width], `targets` Int[N] of ids; both results Float[N] in nats, float32 at least. N may be
    0. Entropies carry a gradient only with `entropy_gradient`. The backward pass computes logits again, except those of
    the last chunk if no entropy has a gradient.
    """
    if len(targets) == 0:
        return hidden.new_zeros(0, dtype=_precise(hidden.dtype)), None
    if _is_plain(head):
        # Read out here: inside of an autograd function gradients are always off.
        settings = (distribution, torch.is_grad_enabled())
        logprobs, entropies = _LinearLogprobs.apply(hidden, head.weight, head.bias, targets, settings)
        return logprobs, entropies if distribution.with_entropy else None
    logprobs, entropies = [], []
    chunk = distribution.chunk_tokens
    for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled():
            values, entropy = checkpoint(_chunk, states, ids, head, distribution, use_reentrant=False)
        else:
            values, entropy = _chunk(states, ids, head, distribution)
        logprobs.append(values)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies) if distribution.with_entropy else None


def _is_plain(head: Head) -> TypeGuard[nn.Linear]:
    """Whether calling the head is its matrix product and nothing else: adapters and hooks would be left out by hand."""
    if not isinstance(head, nn.Module) or not is_linear(head) or "forward" in vars(head):
        return False
    return not head._forward_hooks and not head._forward_pre_hooks


def _chunk(hidden: Tensor, targets: Tensor, head: Head, distribution: Distribution) -> tuple[Tensor, Tensor | None]:
    logits = head(hidden)[:, : distribution.vocabulary]
    logits = logits.to(_precise(logits.dtype))
    if distribution.temperature != 1:
        logits = logits / distribution.temperature
    normalizer = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normalizer
    if not distribution.with_entropy:
        return logprobs, None
    with torch.set_grad_enabled(torch.is_grad_enabled() and distribution.entropy_gradient):
        # The entropy comes last, so a backward pass that does not need it stops recomputing before it.
        probabilities = (logits - normalizer[:, None]).exp()
        return logprobs, normalizer - (probabilities * logits).sum(-1)


class _LinearLogprobs(torch.autograd.Function):
    """Log-probabilities l_n = z_n[t_n] / T - log sum_v exp(z_n[v] / T) with z_n = W h_n + b, and entropies.

    With g_n the gradient of l_n and p_n the probabilities, that of z_n is s_n = g_n (e - p_n) / T, where e is 1 at t_n
    and 0 elsewhere; so h_n has W' s_n, W has sum_n s_n h_n' and b has sum_n s_n. Rows beyond the vocabulary have 0.
    With `entropy_gradient` and e_n the gradient of the entropy H_n, s_n also has -e_n p_n (log p_n + H_n) / T.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: tuple[Distribution, bool],
    ) -> tuple[Tensor, Tensor]:
        distribution, graded = settings
        used = _Head(hidden, weight, bias, distribution)
        logprobs, entropies = [], []
        probabilities = None
        graded = graded and any(ctx.needs_input_grad[:3])
        for place in used.chunks():
            # Freed before the next chunk's logits, so that one chunk alone is in memory.
            del probabilities
            every = used.logits(place).log_softmax(-1)
            logprobs.append(every.gather(-1, targets[place, None]).squeeze(-1))
            probabilities = every.exp() if graded or distribution.with_entropy else None
            if probabilities is not None and distribution.with_entropy:
                # Autocast would sum in its own type.
                with torch.autocast(hidden.device.type, enabled=False):
                    entropies.append(-torch.linalg.vecdot(probabilities, every))
        if distribution.entropy_gradient:
            # The entropy's gradient needs log-probabilities as well, so the backward pass starts from the logits.
            probabilities = None
        # The last chunk's probabilities are the backward pass's first, so they are saved: with one chunk, as for most
        # micro-batches, no logits are computed twice.
        ctx.save_for_backward(hidden, weight, bias, targets, probabilities)
        ctx.distribution, ctx.dtype = distribution, used.dtype
        values = torch.cat(logprobs)
        # An autograd function must return a tensor; the caller drops an empty one.
        entropy = torch.cat(entropies) if entropies else values.new_zeros(0)
        if not distribution.entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return values, entropy

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor, of_entropies: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, targets, last = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        used = _Head(hidden, weight, bias, ctx.distribution, ctx.dtype)
        into_hidden = torch.empty_like(hidden) if for_hidden else None
        # float32 for a bfloat16 head: it sums over all tokens of the micro-batch.
        into_weight = torch.zeros_like(weight, dtype=_precise(weight.dtype)) if for_weight else None
        into_bias = torch.zeros_like(bias, dtype=_precise(bias.dtype)) if for_bias else None
        scaled = (gradient / ctx.distribution.temperature)[:, None]
        chunks = used.chunks()
        # From the last chunk on, so that its saved probabilities are freed before another chunk's are made.
        for place in reversed(chunks):
            if ctx.distribution.entropy_gradient:
                slopes = _entropy_slopes(used.logits(place), of_entropies[place], scaled[place], ctx.distribution)
            elif last is not None:
                # Not in place: with retain_graph the saved tensor is read again.
                slopes, last = last * -scaled[place], None
            else:
                slopes = used.logits(place).softmax(-1).mul_(-scaled[place])
            # The one-hot e of the formula, added at its one place and never as [chunk, vocabulary].
            slopes.scatter_add_(1, targets[place, None], scaled[place])
            slopes = slopes.to(used.dtype)
            if into_hidden is not None:
                into_hidden[place] = multiply(slopes, used.weight.t())
            if into_weight is not None:
                add_products(into_weight[: used.vocabulary], slopes, used.hidden(place))
            if into_bias is not None:
                into_bias[: used.vocabulary] += slopes.sum(0)
        return into_hidden, into_weight, into_bias, None, None


def _entropy_slopes(logits: Tensor, of_entropies: Tensor, scaled: Tensor, distribution: Distribution) -> Tensor:
    """-p (g + e (log p + H)) / T, [chunk, vocabulary]: of log-probabilities but for the target's own, and entropies."""
    every = logits.log_softmax(-1)
    probabilities = every.exp()
    entropies = -(probabilities * every).sum(-1, keepdim=True)
    weight = (of_entropies / distribution.temperature)[:, None]
    return -probabilities * (scaled + weight * (every + entropies))


class _Head:
    """The matrix product of a linear head on chunks of states, in the type of autocast if that is on."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        distribution: Distribution,
        dtype: torch.dtype | None = None,
    ) -> None:
        device = hidden.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        # Cast once, and cut to the vocabulary: padded rows of the head must not get probability.
        self.dtype = dtype
        self.states = hidden
        self.vocabulary = len(weight) if distribution.vocabulary is None else distribution.vocabulary
        self.weight = weight[: self.vocabulary].to(dtype)
        self.bias = None if bias is None else bias[: self.vocabulary].to(dtype)
        self.distribution = distribution

    def chunks(self) -> list[slice]:
        size = self.distribution.chunk_tokens
        return [slice(first, first + size) for first in range(0, len(self.states), size)]

    def hidden(self, place: slice) -> Tensor:
        return self.states[place].to(self.dtype)

    def logits(self, place: slice) -> Tensor:
        """[chunk, vocabulary], divided by the temperature, float32 at least; a tensor of its own."""
        with torch.autocast(self.states.device.type, enabled=False):
            logits = multiply(self.hidden(place), self.weight, self.bias)
        logits = logits.to(_precise(logits.dtype))
        return logits.div_(self.distribution.temperature) if self.distribution.temperature != 1 else logits


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
