"""Whether the product's training pass and the plain one give the same loss and gradient on the same trajectories."""

from __future__ import annotations

import torch

from benchmarks.plain import PlainSide
from benchmarks.product import ProductSide
from memfactory.policy.batch import training_turns


def compared(product: ProductSide, plain: PlainSide) -> dict[str, float]:
    """How far apart loss and gradient of the sides are.

    The policy is first moved away from the reference, so that the KL term has a gradient. The loss's
    difference is relative to the mean size of the advantages, the gradient's largest one to its largest entry.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for ours, theirs in zip(product.policy.trained, plain.trained, strict=True):
            moved = ours.cpu() + 0.02 * torch.randn(ours.shape, generator=generator)
            ours.copy_(moved)
            theirs.copy_(moved)
    turns = training_turns(product.sampled(1), product.options)
    scored = product.policy.score_reference(turns) if product.options.loss.kl_coef > 0 else turns
    loss = product.policy.backward(scored)["loss"]
    other = plain.gradients(turns)
    scale, apart = 0.0, 0.0
    for ours, theirs in zip(product.policy.trained, plain.trained, strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        gradient = torch.zeros_like(ours) if ours.grad is None else ours.grad
        scale = max(scale, float(expected.abs().max()))
        apart = max(apart, float((gradient - expected).abs().max()))
    # The loss itself is next to 0, as the advantages of a group are.
    size = sum(abs(turn.advantage) for turn in turns) / len(turns)
    return {"loss": abs(loss - other) / size, "gradient": apart / scale}
