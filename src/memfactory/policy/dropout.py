"""Dropout of a model itself, which policy-gradient training leaves out.

Under dropout the log-probabilities that train belong to another distribution than the one that was sampled: the ratio
is not 1 on-policy and the gradient is noise on noise.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

ADAPTERS_OWN = "lora_dropout"


def silence_dropout(model: nn.Module) -> int:
    """Set every dropout probability of `model` to 0 but those of adapters; the number of those above 0 before.

    Probabilities are those of dropout modules, and numbers that a layer keeps under a name with `drop` in it and hands
    to a function (`attention_dropout`, `activation_dropout`, `layerdrop`). The model's config stays as it is.
    """
    silenced = 0
    for name, module in model.named_modules():
        if ADAPTERS_OWN in name.split("."):
            continue
        if isinstance(module, _DropoutNd):
            silenced += module.p > 0
            module.p = 0.0
            continue
        for key, value in vars(module).items():
            if "drop" in key and isinstance(value, float) and value > 0:
                setattr(module, key, 0.0)
                silenced += 1
    return silenced
