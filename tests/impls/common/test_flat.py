"""Parameters that travel together."""

import pytest
import torch
from torch import nn

from impls.common import flat
from impls.common.flat import FEWEST, SMALLEST, flatten_gradients, runs


def parameters(*sizes: int) -> list[nn.Parameter]:
    """Parameters of these sizes in bytes."""
    return [nn.Parameter(torch.empty(size // 4)) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([SMALLEST] * 8, [2, 2, 2, 2]),  # a share of the whole
        ([64] * 100, [100]),  # small parameters travel together
        ([SMALLEST * 6, SMALLEST, SMALLEST], [1, 2]),  # a parameter larger than its share is alone
        ([], []),
    ],
)
def test_neighbours_travel_together_up_to_a_share_of_all(sizes: list[int], lengths: list[int]) -> None:
    given = parameters(*sizes)
    found = runs(given)
    assert [len(run) for run in found] == lengths
    assert [id(p) for run in found for p in run] == [id(p) for p in given]


def test_no_run_of_a_large_model_is_larger_than_a_message_need_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "LARGEST", 2 * SMALLEST)
    assert [len(run) for run in runs(parameters(*[SMALLEST] * 4 * FEWEST))] == [2] * 2 * FEWEST


def test_a_share_of_all_may_be_larger_of_fewer_runs() -> None:
    assert [len(run) for run in runs(parameters(*[SMALLEST] * 8), fewest=2)] == [4, 4]


def test_gradients_lie_in_one_buffer_and_the_next_are_added_there() -> None:
    given = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))]
    buffer = torch.full((10,), torch.nan)
    for scale in (1.0, 2.0):
        sum(scale * (index + 1) * p.sum() for index, p in enumerate(given)).backward()
        if scale == 1.0:
            flatten_gradients(given, buffer)
    assert buffer.tolist() == [3.0] * 6 + [6.0] * 2 + [0.0] * 2
