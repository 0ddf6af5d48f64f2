"""Operations of products, counted forward and backward."""

import torch
import torch.nn.functional as F

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
