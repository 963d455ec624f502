"""Log-probabilities in chunks against those of the whole matrix of logits, and how much of it is ever there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from memfactory.policy.logprobs import Distribution, chunked_logprobs
from small_policy import largest_difference

TARGETS = torch.tensor([3, 44, 0, 7, 7, 21, 30, 12, 5, 40, 1])


class Wrapped(nn.Module):
    """A head that is no plain linear layer."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden)


class Largest(TorchDispatchMode):
    """Remembers how many rows the largest matrix of `columns` columns had that any operation made."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.rows = columns, 0

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        result = operation(*given, **(named or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == self.columns:
            self.rows = max(self.rows, result.shape[0])
        return result


def states() -> Tensor:
    return torch.linspace(-2, 2, 11 * 16, dtype=torch.float64).sin().reshape(11, 16).requires_grad_()


def head_of(bias: bool) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(16, 50, bias=bias).double()


@pytest.mark.parametrize("wrapped", [False, True], ids=["linear", "any head"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [4, 11, 2048])
def test_chunked_logprobs_equal_naive_ones_forward_and_backward(chunk, temperature, bias, wrapped) -> None:
    head = head_of(bias)
    hidden = states()
    # The last five rows of the head stand for no token.
    logprobs = (head(hidden)[:, :45] / temperature).log_softmax(-1)
    expected = [logprobs[range(11), TARGETS], -(logprobs.exp() * logprobs).sum(-1)]
    expected += torch.autograd.grad((expected[0] * torch.arange(11)).sum(), [hidden, *head.parameters()])
    values, entropies = chunked_logprobs(
        hidden, TARGETS, Wrapped(head) if wrapped else head, Distribution(45, temperature, chunk, True)
    )
    assert not entropies.requires_grad
    found = [values, entropies]
    found += torch.autograd.grad((values * torch.arange(11)).sum(), [hidden, *head.parameters()])
    assert largest_difference(expected, found) < 1e-12


@pytest.mark.parametrize("chunk", [4, 20])
def test_the_gradient_written_by_hand_is_that_of_finite_differences(chunk) -> None:
    head = head_of(True)

    def logprobs(hidden: Tensor, *weights: Tensor) -> Tensor:
        return chunked_logprobs(hidden, TARGETS, head, Distribution(45, 0.7, chunk))[0]

    assert torch.autograd.gradcheck(logprobs, (states(), *head.parameters()))


@pytest.mark.parametrize("wrapped", [False, True], ids=["linear", "any head"])
def test_there_are_never_more_logits_than_a_chunk_in_either_pass(wrapped) -> None:
    head = nn.Linear(3, 50, bias=False)
    hidden = torch.randn(10, 3, requires_grad=True)
    with Largest(50) as seen:
        values, _ = chunked_logprobs(
            hidden, torch.zeros(10, dtype=torch.long), Wrapped(head) if wrapped else head, Distribution(chunk_tokens=4)
        )
        assert seen.rows == 4
        values.sum().backward()
    assert seen.rows == 4


def test_a_frozen_head_has_no_gradient_but_the_states_have() -> None:
    hidden, head = states(), head_of(False)
    (expected,) = torch.autograd.grad(chunked_logprobs(hidden, TARGETS, head, Distribution())[0].sum(), [hidden])
    head.requires_grad_(False)
    chunked_logprobs(hidden, TARGETS, head, Distribution())[0].sum().backward()
    assert torch.equal(hidden.grad, expected)
    assert head.weight.grad is None


def test_logprobs_and_gradients_under_autocast_are_float32() -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False)
    given = torch.randn(11, 16)
    both = []
    for used in (head, Wrapped(head)):
        hidden = given.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values, _ = chunked_logprobs(hidden, TARGETS, used, Distribution(45, chunk_tokens=4))
        both.append([values, *torch.autograd.grad(values.sum(), [hidden, head.weight])])
        assert {tensor.dtype for tensor in both[-1]} == {torch.float32}
    torch.testing.assert_close(both[0][0], both[1][0], rtol=0, atol=1e-6)
    # The gradient of the logits is rounded to bfloat16, of 8 bits, in both.
    assert largest_difference(both[0], both[1]) < 1e-2


def test_entropies_are_float32_under_autocast_too() -> None:
    head, found = head_of(bias=False).float(), []
    for one in (head, Wrapped(head)):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            _, entropies = chunked_logprobs(states().float(), TARGETS, one, Distribution(with_entropy=True))
        found.append(entropies)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_no_tokens_have_no_logprobs() -> None:
    values, entropies = chunked_logprobs(
        torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), nn.Linear(8, 50), Distribution(with_entropy=True)
    )
    assert len(values) == 0 and entropies is None


def test_without_gradient_and_entropy_no_probability_is_computed():
    head, hidden, targets = torch.nn.Linear(4, 6), torch.randn(3, 4, requires_grad=True), torch.tensor([0, 5, 2])

    def exponentials(**options) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            chunked_logprobs(hidden, targets, head, Distribution(chunk_tokens=2, **options))
        return sum(event.count for event in recorded.key_averages() if event.key == "aten::exp")

    # Two chunks. Trainable weights alone are no reason.
    assert exponentials() == exponentials(with_entropy=True) == 2
    with torch.no_grad():
        assert (exponentials(), exponentials(with_entropy=True)) == (0, 2)
