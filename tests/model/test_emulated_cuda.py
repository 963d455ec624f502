"""The emulated GPU finds tensors of two devices in one operation, and counts launches and waits as a GPU has them."""

import pytest
import torch

from benchmarks.emulated_cuda import CUDA, MixedDevices, emulated_cuda, on_cuda


def test_tensors_of_two_devices_do_not_meet():
    with emulated_cuda():
        here, there = torch.ones(3), torch.ones(3, device=CUDA)
        assert there.device == CUDA and (there + 1).is_cuda and not there.cpu().is_cuda
        for meet in (lambda: here + there, lambda: there @ here, lambda: torch.cat([there, here])):
            with pytest.raises(MixedDevices):
                meet()
        # A number without dimensions may come from the CPU, and so may an index, which is then sent there.
        assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]
        assert there[torch.tensor([0, 2])].tolist() == [1, 1]


def test_views_are_no_launches_and_composite_operations_are_their_parts():
    with emulated_cuda() as device, torch.inference_mode():
        states, weight = torch.ones(2, 1, 4, device=CUDA), torch.ones(3, 4, device=CUDA)
        device.reset()
        states.view(8).unsqueeze(0).expand(2, 8).to(torch.float32)
        assert not +device.kernels and device.kernels.total() == 0
        torch.nn.functional.linear(states, weight)
        assert +device.kernels == {"mm": 1}
        device.reset()
        states.transpose(0, 2).reshape(8).to(torch.bfloat16)
        assert device.kernels.total() == 2 and not device.waits
        states.sum().item()
        assert device.waits == {"item": 1}


def test_a_module_moves_with_weights_that_stay_one():
    with emulated_cuda():
        one = torch.nn.Linear(4, 4, bias=False)
        two = torch.nn.Linear(4, 4, bias=False)
        two.weight = one.weight
        both = on_cuda(torch.nn.Sequential(one, two))
        assert both[0].weight is both[1].weight and both[0].weight.device == CUDA
        both(torch.ones(1, 4, device=CUDA)).sum().backward()
        assert both[0].weight.grad.device == CUDA
        with pytest.raises(MixedDevices):
            both(torch.ones(1, 4))
