"""Trials of a model: whether it computes the same in two ways, up to its own rounding.

In half precision the distance that rounding explains is a property of the model: it grows with depth, and on some ids
(special tokens, bytes) a pretrained model is far even from itself. So trials use ordinary ids, and their yardstick is
the distance between two attention kernels of torch, which differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

# The relative distance that rounding explains in float32, and the least that it is taken to explain in half precision.
EXACT, COARSE = 1e-3, 1e-2
# A trial has a few tokens, so the distance between two kernels is itself known to a factor only.
_FACTOR = 4


def ordinary_ids(vocabulary: int, count: int) -> list[int]:
    """`count` ids, evenly spaced in the middle half of a vocabulary, whose ends hold special tokens and bytes."""
    return [(vocabulary // 4 + place * max(vocabulary // 2, 1) // count) % vocabulary for place in range(count)]


def relative_distance(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||other||."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def rounding(model: PreTrainedModel, dtype: torch.dtype, compute: Callable[[], Tensor]) -> float:
    """The relative distance of results of `compute`, a pass of `model` in `dtype`, that its rounding explains.

    In half precision it is 4 times the distance between the results under two attention kernels.
    """
    if dtype == torch.float32:
        return EXACT
    expected, attention = compute(), str(model.config._attn_implementation)
    try:
        model.set_attn_implementation("eager" if attention != "eager" else "sdpa")
        other = compute()
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError):
        # The model has one kernel only.
        return 5 * COARSE
    finally:
        model.set_attn_implementation(attention)
    # A broken model, whose results are not finite, has no yardstick either.
    return max(COARSE, _FACTOR * relative_distance(other, expected))
