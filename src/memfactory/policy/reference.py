"""The reference policy of the KL term: the policy before training, or a moving one that follows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from memfactory.errors import MemFactoryError
from memfactory.model.adapters import Network, base_model

FILE = "reference.safetensors"


class Reference:
    """Stores as little as it can: a frozen copy only if the whole model is trained.

    Under new adapters the reference is the model with the adapters off; for an adapter whose training continues
    (`continued`) it stores their first values. A reference that `moves` has values of its own in any case: of the
    adapters, or of the whole model. With `averaged` they are float32, as an update can be below bfloat16's resolution.
    """

    def __init__(
        self,
        network: Network,
        dtype: torch.dtype,
        *,
        continued: bool,
        moves: bool = False,
        averaged: bool = False,
    ) -> None:
        self.network = network
        self.moves = moves
        self.trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        adapters = isinstance(network, PeftModel)
        self.copy = None if adapters else frozen_copy(network, torch.float32 if averaged else dtype)
        if self.copy is not None and averaged:
            self.copy.float()
        self.start = [p.detach().clone() for p in self.trained] if adapters and (continued or moves) else None

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        """The reference as a model, for as long as the context lasts; the policy must not be used meanwhile."""
        if self.copy is not None:
            yield self.copy
            return
        if self.start is None and isinstance(self.network, PeftModel):
            with self.network.disable_adapter():
                yield base_model(self.network)
            return
        now = [parameter.data for parameter in self.trained]
        try:
            # Swapped in place, without a copy: both sets of adapters are small, and the base is shared.
            for parameter, value in zip(self.trained, self._values(), strict=True):
                parameter.data = value
            yield base_model(self.network)
        finally:
            for parameter, value in zip(self.trained, now, strict=True):
                parameter.data = value

    @torch.no_grad()
    def move(self, mixup: float) -> None:
        """ref <- mixup x policy + (1 - mixup) x ref, parameter by parameter (TR-DPO, arXiv 2404.09656).

        Of adapters the factors are mixed, not their product; with a mixup of 1 the reference becomes the policy.
        """
        for own, current in zip(self._values(), self.trained, strict=True):
            if mixup == 1:
                own.copy_(current)
            else:
                own.lerp_(current.to(own.dtype), mixup)

    def _values(self) -> list[torch.Tensor]:
        """The reference's own values, in the order of the trained parameters."""
        if self.copy is None:
            return self.start or []
        trained = {name for name, parameter in self.network.named_parameters() if parameter.requires_grad}
        return [parameter for name, parameter in self.copy.named_parameters() if name in trained]

    def save(self, folder: Path) -> None:
        """Write the values of a reference that moves; any other is made again from the first model."""
        if self.moves:
            values = {str(i): value.detach().cpu().contiguous() for i, value in enumerate(self._values())}
            save_file(values, str(folder / FILE))

    def load(self, folder: Path) -> None:
        """Restore the values that `save` wrote. Raises MemFactoryError if they are missing or of another model."""
        if not self.moves:
            return
        path = folder / FILE
        if not path.is_file():
            raise MemFactoryError(
                f"{folder} has no {FILE}, which a run with train.loss.reference_sync_steps resumes from"
            )
        saved, own = load_file(str(path)), self._values()
        if len(saved) != len(own) or any(saved[str(i)].shape != value.shape for i, value in enumerate(own)):
            raise MemFactoryError(f"{path} holds {len(saved)} tensors that do not fit the {len(own)} of this model")
        for i, value in enumerate(own):
            value.copy_(saved[str(i)])


def frozen_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy with exactly the outputs of `model` under autocast to `dtype`.

    Weights of linear layers are stored in `dtype`, which autocast rounds them to anyway. Others (embeddings, tied
    heads, norms) stay as they are, since autocast leaves them alone.
    """
    copy = deepcopy(model)
    copy.requires_grad_(False)
    embedding = copy.get_input_embeddings().weight
    for module in copy.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            module.to(dtype)
    return copy.eval()
