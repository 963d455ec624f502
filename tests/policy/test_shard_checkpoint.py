"""AdamW resumed from shards counts its steps where its kernel reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from benchmarks.emulated_cuda import emulated_cuda
from memfactory.policy.shard_checkpoint import read_shards, sharded_state, write_shards


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kernel", ["fused", "capturable", "foreach"])
@pytest.mark.parametrize("source", ["shards", "whole"])
def test_the_count_of_steps_is_where_the_kernel_reads_it(tmp_path, kernel, source):
    saved = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    before = AdamW([saved], lr=0.1)
    saved.grad = torch.ones_like(saved)
    for _ in range(3):
        before.step()
    write_shards(tmp_path, {"w": saved}, {"w": saved}, before)
    with emulated_cuda():
        own = nn.Parameter(torch.zeros(2, 3, device="cuda"))
        after = AdamW([own], lr=0.1, **{kernel: True})
        if source == "shards":
            read_shards(tmp_path, {"w": own}, {"w": own}, after)
        else:
            own.detach().copy_(saved.detach().to("cuda"))
            after.state[own] = sharded_state(before.state[saved], own, own, after.param_groups[0])
        step = after.state[own]["step"]
        assert float(step) == 3 and step.device.type == ("cpu" if kernel == "foreach" else "cuda")
        moments = [after.state[own][key].cpu() for key in ("exp_avg", "exp_avg_sq")]
    state = before.state[saved]
    assert torch.equal(moments[0], state["exp_avg"]) and torch.equal(moments[1], state["exp_avg_sq"])
