"""Parameters that travel together."""

import pytest
import torch
from torch import Tensor, nn

from impls.common import flat
from impls.common.flat import FEWEST, SMALLEST, flatten_gradients, in_order, runs


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


def test_a_gradient_that_does_not_exist_is_zero_in_the_buffer() -> None:
    given = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    given[1].sum().backward()
    buffer = torch.full((6,), torch.nan)
    flatten_gradients(given, buffer)
    assert buffer.tolist() == [0.0] * 2 + [1.0] * 3 + [0.0]


@pytest.mark.parametrize("skipped", [None, 1, 2, 3])
def test_groups_follow_each_other_from_the_last_one_whichever_layer_a_pass_skips(skipped: int | None) -> None:
    layers = [nn.Linear(2, 2, bias=False) for _ in range(4)]
    done: list[tuple[int, bool]] = []

    def take(group: int) -> None:
        done.append((group, layers[0].weight.grad is None))
        layers[group].weight.grad = None

    in_order([[layer.weight] for layer in layers], take)
    for _ in range(2):  # a pass leaves nothing behind
        done.clear()
        x: Tensor = torch.ones(1, 2)
        for index, layer in enumerate(layers):
            x = x if index == skipped else layer(x)
        x.sum().backward()
        assert [group for group, _ in done] == [3, 2, 1, 0]
        during = [group for group, early in done if early]
        assert during == [group for group in (3, 2, 1) if skipped is None or group > skipped]
