"""The policy as it was before training, which the KL term holds the policy to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from memfactory.engines.adapters import Network


class Reference:
    """Keeps as little as it can: a frozen copy only where the whole model is trained.

    New adapters are switched off; of adapters that were there before (`continued`) the first values are kept.
    """

    def __init__(self, network: Network, dtype: torch.dtype, *, continued: bool) -> None:
        self.network = network
        self.copy = None if isinstance(network, PeftModel) else frozen_copy(network, dtype)
        self.trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.start = [parameter.detach().clone() for parameter in self.trained] if continued else None

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        """The reference as a model, for as long as the context lasts; the policy must not be used meanwhile."""
        if self.copy is not None:
            yield self.copy
            return
        assert isinstance(self.network, PeftModel)
        if self.start is None:
            with self.network.disable_adapter():
                yield self.network.get_base_model()
            return
        now = [parameter.data for parameter in self.trained]
        try:
            for parameter, value in zip(self.trained, self.start, strict=True):
                parameter.data = value
            yield self.network.get_base_model()
        finally:
            for parameter, value in zip(self.trained, now, strict=True):
                parameter.data = value


def frozen_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy that computes exactly what `model` computes now under autocast to `dtype`.

    Weights of linear layers are kept in `dtype`, which autocast rounds them to anyway. Others (embeddings, tied
    heads, norms) stay as they are, since autocast leaves them alone.
    """
    copy = deepcopy(model)
    copy.requires_grad_(False)
    embedding = copy.get_input_embeddings().weight
    for module in copy.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            module.to(dtype)
    return copy.eval()
