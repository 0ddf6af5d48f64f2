"""Operations of products, counted forward and backward, and the bytes of operators."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.meter.operations import Operations


def test_a_product_has_two_operations_a_multiplication_and_twice_as_many_backward() -> None:
    x, w = torch.ones(3, 5, requires_grad=True), torch.ones(7, 5, requires_grad=True)
    with Operations() as counter:
        y = F.linear(x, w)
        assert counter.counted == 2 * 3 * 5 * 7
        y.sum().backward()
    assert counter.counted == 3 * 2 * 3 * 5 * 7
    torch.mm(x, w.t())
    assert counter.counted == 3 * 2 * 3 * 5 * 7


def test_products_in_place_and_in_batches_count_and_sums_do_not() -> None:
    a, b, c = torch.ones(2, 3), torch.ones(3, 4), torch.zeros(2, 4)
    with Operations() as counter:
        c.addmm_(a, b)
        (a + a).exp_().sum()
    assert counter.counted == 2 * 2 * 3 * 4
    with Operations() as counter:
        torch.ones(6, 2, 3) @ torch.ones(6, 3, 4)
    assert counter.counted == 6 * 2 * 2 * 3 * 4


def test_what_a_checkpoint_computes_again_counts_again() -> None:
    x = torch.ones(3, 3, requires_grad=True)
    with Operations() as counter:
        y = torch.utils.checkpoint.checkpoint(lambda x: (x @ x).exp(), x, use_reentrant=False)
        y.sum().backward()
    assert counter.counted == 4 * 2 * 3**3


def test_attention_counts_on_a_cpu_as_it_does_on_cuda() -> None:
    q, k, v = (torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    with Operations() as counter, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(q, k, v)
        assert counter.counted == 2 * (2 * 2 * 8 * 8 * 4)  # two products
        out.sum().backward()
    assert counter.counted == (2 + 5) * (2 * 2 * 8 * 8 * 4)  # four more, and QKᵀ again


def test_the_bytes_of_operators_count_and_views_are_free() -> None:
    a, b = torch.randn(8, 4), torch.randn(4, 2)
    with Operations() as counter:
        (a @ b).T.relu()
    assert counter.moved == 4 * (8 * 4 + 4 * 2 + 8 * 2 + 2 * 8 * 2)
