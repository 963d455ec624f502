"""The attention of sampling and of training on this card, forwards and backwards, against float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.check import Check
from benchmarks.gpu.findings import Expected
from memfactory.model.kernels import attend_block
from memfactory.model.tree_attention import DecodingStep, Forest, SharedKeys
from memfactory.model.trial import relative_distance

# Relative errors in bfloat16, and the largest absolute one of a log-sum-exp. A CPU has 2e-3, 7e-5 and 4e-3.
OUTPUT, WEIGHT, GRADIENT = Expected(high=1e-2), Expected(high=2e-2), Expected(high=2e-2)


@dataclass(frozen=True)
class Heads:
    """Heads of queries and of keys, and their width."""

    queries: int
    keys: int
    width: int

    @property
    def scale(self) -> float:
        """The factor of the scores."""
        return float(self.width**-0.5)


# Those of Qwen3-4B, Qwen3-1.7B, SmolLM2-135M, and of models without groups, and with one wide key head.
KINDS = (Heads(32, 8, 128), Heads(16, 8, 128), Heads(9, 3, 64), Heads(8, 8, 96), Heads(4, 1, 256))
# Queries, keys, and whether they are causal.
BLOCKS = ((1, 1, False), (1, 37, False), (4, 700, False), (17, 17, True), (256, 2500, False), (2500, 2500, True))
LARGE = 100_000


def run(check: Check) -> None:
    """Compare single blocks, a forest with its gradient, and decoding steps; time the last."""
    report = check.report
    torch.manual_seed(0)
    kinds = KINDS[2:4] if check.small else KINDS
    for heads in kinds:
        name = f"a block of {heads.queries} heads over {heads.keys} of {heads.width}"
        with report.guarded(name):
            output, weight = block_errors(check, heads)
            report.measured(name, output, "", OUTPUT)
            report.measured(f"{name}, log-sum-exp", weight, "", WEIGHT)
    heads = Heads(4, 2, 32) if check.small else KINDS[0]
    with report.guarded("gradients of a forest"):
        for name, error in forest_errors(check, heads, 48 if check.small else 384).items():
            report.measured(f"gradient of a forest, {name}", error, "", GRADIENT)
    for ragged in (False, True):
        name = f"a decoding step, {'ragged' if ragged else 'in step'}"
        with report.guarded(name):
            decode(check, heads, name, ragged=ragged)


def exact(query: Tensor, key: Tensor, value: Tensor, scale: float, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in float64 by the formula; `visible` hides keys, None: none."""
    folds = query.shape[1] // key.shape[1]
    key, value = (states.double().repeat_interleave(folds, 1) for states in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * scale
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def draw(check: Check, rows: int, heads: int, tokens: int, width: int) -> Tensor:
    """Random states [rows, heads, tokens, width], laid out as the projections of a model leave them."""
    return torch.randn(rows, tokens, heads, width, device=check.device, dtype=check.dtype).transpose(1, 2)


def block_errors(check: Check, heads: Heads) -> tuple[float, float]:
    """The worst relative error of an output and the worst absolute one of a log-sum-exp, over all `BLOCKS`."""
    outputs, weights = [], []
    for queries, keys, causal in BLOCKS:
        if check.small and queries * keys > LARGE:
            continue
        # Keys and values are slices of a longer row, as in packed rows.
        row = draw(check, 1, heads.keys, keys + 5, heads.width)
        key, value = row[:, :, 3 : 3 + keys], row[:, :, 2 : 2 + keys]
        query = draw(check, 1, heads.queries, queries, heads.width)
        output, weight, _ = attend_block(query, key, value, heads.scale, causal)
        visible = torch.ones(queries, keys, dtype=torch.bool, device=check.device).tril() if causal else None
        expected, expected_weight = exact(query, key, value, heads.scale, visible)
        outputs.append(relative_distance(output, expected))
        weights.append(float((weight.double() - expected_weight).abs().max()))
    return max(outputs), max(weights)


def forest_errors(check: Check, heads: Heads, tokens: int) -> dict[str, float]:
    """Relative errors of the gradients of query, key and value in a tree of a root and two children."""
    third = tokens // 3
    first, second, last = (0, third), (third, 2 * third), (2 * third, tokens)
    forest = Forest((first, second, last), (((third, tokens), first),))
    visible = torch.ones(tokens, tokens, dtype=torch.bool, device=check.device).tril()
    visible[2 * third :, third : 2 * third] = False
    counts = (heads.queries, heads.keys, heads.keys)
    inputs = [draw(check, 1, count, tokens, heads.width) for count in counts]
    slope = torch.randn(1, heads.queries, tokens, heads.width, device=check.device)
    ours = [states.clone().requires_grad_() for states in inputs]
    output = forest.attend(0, ours[0], ours[1], ours[2], heads.scale).transpose(1, 2)
    gradients = torch.autograd.grad((output.float() * slope).sum(), ours)
    theirs = [states.double().requires_grad_() for states in inputs]
    expected, _ = exact(theirs[0], theirs[1], theirs[2], heads.scale, visible)
    exact_gradients = torch.autograd.grad((expected * slope.double()).sum(), theirs)
    names = ("query", "key", "value")
    return {name: relative_distance(one, two) for name, one, two in zip(names, gradients, exact_gradients, strict=True)}


def decode(check: Check, heads: Heads, name: str, *, ragged: bool) -> None:
    """One decoding step of rows in two groups with a shared prefix each: its worst row, and its time."""
    rows, columns, shared = (4, 64, 40) if check.small else (64, 1024, 2600)
    keys, values = (draw(check, rows, heads.keys, columns, heads.width).contiguous() for _ in range(2))
    lengths = torch.full((rows,), columns, device=check.device)
    if ragged:
        lengths = torch.randint(1, columns, (rows,), device=check.device)
    seen = torch.arange(columns, device=check.device) < lengths[:, None]
    prefixes = [tuple(draw(check, 1, heads.keys, shared, heads.width) for _ in range(2)) for _ in range(2)]
    half = rows // 2
    both = SharedKeys(torch.arange(rows, device=check.device), tuple((half, [one]) for one in prefixes))
    query = draw(check, rows, heads.queries, 1, heads.width)
    step = DecodingStep(seen if ragged else None, (both,))
    output = step.attend(0, query, keys, values, heads.scale)
    errors = []
    for row in range(rows):
        own, prefix = int(lengths[row]), prefixes[row // half]
        key, value = (
            torch.cat([before, slots[row : row + 1, :, :own]], 2)
            for before, slots in zip(prefix, (keys, values), strict=True)
        )
        expected, _ = exact(query[row : row + 1], key, value, heads.scale, None)
        errors.append(relative_distance(output[row : row + 1].transpose(1, 2), expected))
    check.report.measured(name, max(errors), "", GRADIENT)
    repeats = 2 if check.small else 50
    each = check.seconds(lambda: [step.attend(0, query, keys, values, heads.scale) for _ in range(repeats)]) / repeats
    read = keys.nbytes + values.nbytes + sum(states.nbytes for prefix in prefixes for states in prefix)
    check.report.measured(f"{name}, time of a layer", each * 1e6, "us", note=f"it reads {read / 1e6:.1f} MB")
