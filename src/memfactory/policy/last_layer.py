"""The last layer's feed-forward part for those states alone that are read: the others change nothing.

Every other layer's states become keys and values. Of the last one's only those are read that predict a reply token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel


class LastLayer:
    """`kept` are the places of the flattened rows x width states that are read; None: all of them."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    @contextmanager
    def trimmed(self, model: PreTrainedModel) -> Iterator[None]:
        """Within it the feed-forward part of `model` gives 0 for all but `kept`, in the backward pass as well."""
        module = feed_forward(model)
        if module is None:
            yield
            return
        hooks = [module.register_forward_pre_hook(self._choose), module.register_forward_hook(self._place)]
        try:
            yield
        finally:
            self.kept = None
            for hook in hooks:
                hook.remove()

    def _choose(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.kept is None:
            return None
        self.shape = given[0].shape
        return (given[0].flatten(0, 1).index_select(0, self.kept)[None], *given[1:])

    def _place(self, module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor | None:
        if self.kept is None:
            return None
        whole = result.new_zeros(self.shape).flatten(0, 1)
        return whole.index_copy(0, self.kept, result[0]).view(self.shape)


def feed_forward(model: PreTrainedModel) -> nn.Module | None:
    """The feed-forward part of the last layer, where the model keeps it where most do."""
    layers = getattr(model.get_decoder(), "layers", None)
    module = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    return module if isinstance(module, nn.Module) else None
