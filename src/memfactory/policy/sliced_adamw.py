"""AdamW that updates a slice of weights at a time: moments in host memory, bfloat16 weights rounded at random.

The maths is torch's own `adamw` on each slice. Beside weights, gradients and moments it needs memory for a few slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from memfactory.seeds import stream_seed

SLICE = 2**24
MOMENTS = ("exp_avg", "exp_avg_sq")


class SlicedAdamW(Optimizer):
    """AdamW (arXiv 1711.05101) with float32 moments over float32 or bfloat16 parameters.

    With `host_moments` the moments lie in (on CUDA: pinned) host memory, and each slice of them is on the device only
    while it is updated. bfloat16 parameters are updated in float32 and rounded by `stochastic_round`; the draws depend
    on `seed` and on the updates taken, which are in `state_dict`, so a resumed run draws the same, and so do all
    processes. Gradients are float32, or of the parameter's type.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        seed: int = 0,
        host_moments: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "updates": 0})
        self.seed = seed
        self.host_moments = host_moments
        self.slice_elements = SLICE

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. A closure is not supported (ValueError)."""
        if closure is not None:
            raise ValueError("SlicedAdamW takes no closure")
        generators: dict[torch.device, torch.Generator] = {}
        for number, group in enumerate(self.param_groups):
            group["updates"] += 1
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                device = parameter.device
                if device not in generators:
                    generators[device] = torch.Generator(device)
                    generators[device].manual_seed(stream_seed(self.seed, "rounding", number, group["updates"]))
                self._update(parameter, gradient, group, generators[device])
        if self.host_moments and any(device.type == "cuda" for device in generators):
            # The last slices are on their way to the host, where a checkpoint reads them.
            torch.cuda.synchronize()

    def _update(
        self, parameter: Parameter, gradient: Tensor, group: Mapping[str, Any], generator: torch.Generator
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in MOMENTS:
                state[name] = self._empty_moment(parameter).zero_()
        weights, gradient = parameter.view(-1), gradient.reshape(-1)
        moments = [state[name].view(-1) for name in MOMENTS]
        for start in range(0, weights.numel(), self.slice_elements):
            part = slice(start, start + self.slice_elements)
            exact = weights[part].float()
            # Both are the stored ones themselves where these are on the device already.
            first, second = (moment[part].to(parameter.device, non_blocking=True) for moment in moments)
            adamw(
                [exact],
                [gradient[part].float()],
                [first],
                [second],
                [],
                [state["step"].to(parameter.device, copy=True)],
                foreach=False,
                fused=parameter.is_cuda,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            if parameter.dtype == torch.bfloat16:
                weights[part].copy_(self._rounded(exact, generator))
            for moment, updated in zip(moments, (first, second), strict=True):
                if moment.device != updated.device:
                    moment[part].copy_(updated, non_blocking=True)
        state["step"] += 1

    def _rounded(self, values: Tensor, generator: torch.Generator) -> Tensor:
        return stochastic_round(values, generator)

    def _empty_moment(self, parameter: Parameter) -> Tensor:
        device = torch.device("cpu") if self.host_moments else parameter.device
        pinned = self.host_moments and parameter.is_cuda
        return torch.empty(parameter.shape, dtype=torch.float32, device=device, pin_memory=pinned)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; torch's own method would round the moments to the parameters' type."""
        super().load_state_dict({**state_dict, "state": {}})
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, parameters, strict=True):
            if index in state_dict["state"]:
                saved_state = state_dict["state"][index]
                moments = {name: self._empty_moment(parameter).copy_(saved_state[name]) for name in MOMENTS}
                self.state[parameter] = {"step": saved_state["step"].clone().cpu(), **moments}


def stochastic_round(values: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 `values` as bfloat16, each rounded to one of its two neighbours so that its expectation is itself.

    Of the neighbours a <= x <= b, b comes with probability (x - a) / (b - a) (arXiv 2010.06192): the 16 bits that are
    cut off are the numerator, a uniform 16-bit number decides. `values` is overwritten. Infinite and NaN values are
    the caller's to keep out.
    """
    bits = values.view(torch.int32)
    bits += torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    bits &= -(2**16)
    return values.to(torch.bfloat16)
