"""The memory of one of several processes that each hold a part of the model (`train.shard: fsdp2`)."""

from __future__ import annotations

from memfactory.config.training import TrainerOptions
from memfactory.plan.footprint import BYTES, Architecture, Load

WHOLE = "whole copy for sampling"
GATHERED = "gathered layers"
# Of full fine-tuning; adapters stay whole, and so does all that belongs to them.
DIVIDED = ("weights", "optimizer", "reference", "gradients", "optimizer's workspace")


def is_sharded(options: TrainerOptions, processes: int) -> bool:
    """Whether each of `processes` holds a part of the model."""
    return options.shard != "none" and processes > 1


def per_process(
    memory: dict[str, int], sizes: Architecture, options: TrainerOptions, load: Load, processes: int
) -> dict[str, int]:
    """`memory`, the bytes of a process with the whole model by component, as those of one of `processes`.

    A pass holds three decoder layers: one that computes, the next one, and the buffer that it came in; and the rest of
    the model (embedding, norm, head) all the time. In full fine-tuning also the gradients of a layer in the type of
    its weights, and those of two layers in float32, in which they are summed, with the parts that come out of it.
    """
    width, full = BYTES[load.dtype], options.lora is None
    divided = dict(memory)
    for name in DIVIDED if full else ():
        divided[name] = -(-memory[name] // processes)
    if not full:
        base = width * sizes.parameters
        divided["weights"] = memory["weights"] - base + -(-base // processes)
    layer = layer_parameters(sizes)
    rest = sizes.parameters - sizes.layers * layer
    divided["weights as computed with"] = 0
    if full and width != 4:
        # The head is gathered in the type that it computes in, so no copy of it is made.
        divided["logits"] = memory["logits"] - width * sizes.vocabulary * sizes.hidden
        if load.cuda and load.copies_weights:
            # The whole copy is in that type already, so the engine makes none of its own.
            divided["decoding"] = memory["decoding"] - width * sizes.parameters
    summed = (width + 4 + 4 + 4) * layer if full else 0
    divided[GATHERED] = width * (rest + 3 * layer) + summed
    divided[WHOLE] = width * sizes.parameters if options.plays else 0
    return divided


def layer_parameters(sizes: Architecture) -> int:
    """Parameters of one decoder layer."""
    ends = sizes.vocabulary * sizes.hidden * (1 if sizes.tied else 2)
    return (sizes.parameters - ends) // sizes.layers


def loading_bytes(sizes: Architecture, options: TrainerOptions, dtype: str) -> int:
    """Bytes of host memory in which a process reads the whole model, and copies the reference, before they are
    divided."""
    if options.lora is not None:
        return BYTES[dtype] * sizes.parameters
    return (8 if options.policy_loss.needs_reference else 4) * sizes.parameters
