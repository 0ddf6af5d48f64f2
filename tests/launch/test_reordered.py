"""Other honest arithmetic: the same formula with other rounding, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.launch.reordered import Reordered

X, Y = (torch.randn(4, 48, 48, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def attention(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y).softmax(-1) @ y


def sums(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).log_softmax(-1).sum(-1)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("formula", [attention, sums])
@pytest.mark.parametrize("fused", [False, True])
def test_it_computes_the_same_up_to_float32_s_rounding(
    formula: Callable[[Tensor, Tensor], Tensor], fused: bool
) -> None:
    with Reordered(1, fused):
        found = formula(X, Y)
    assert not torch.equal(found, formula(X, Y))
    assert off(found, formula(X.double(), Y.double())) < 1e-6


def test_the_order_follows_the_seed() -> None:
    found = []
    for seed in (1, 1, 2):
        with Reordered(seed):
            found.append(attention(X, Y))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_operands_on_a_gpu_are_ordered_there() -> None:
    """Fake tensors detect operands on another device than the operator expects."""
    with FakeTensorMode():
        x, y = (torch.empty(4, 48, 48, device="cuda") for _ in range(2))
        with Reordered(1):
            assert attention(x, y).device.type == sums(x, y).device.type == "cuda"
