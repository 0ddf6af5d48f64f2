"""The traffic meter counts the bytes that a rank sends in a ring, whichever form of the collective is called."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.meter.traffic import CONTROL, Traffic
from tests.meter.jobs import N

Ranks = Callable[..., list[Any]]
B = 4 * N  # bytes of one buffer of float32

# The bytes that each of the two ranks sends: a ring all-reduce 2(N−1)/N of the buffer, the others (N−1)/N of the whole
# one.
EXPECTED: dict[str, tuple[str, tuple[float, float]]] = {
    "all_reduce": ("all_reduce", (B, B)),
    "all_reduce async": ("all_reduce", (B, B)),
    "all_reduce coalesced": ("all_reduce", (2 * B, 2 * B)),
    "all_reduce alone": ("all_reduce", (0, 0)),
    "all_gather": ("all_gather", (B, B)),
    "all_gather flat": ("all_gather", (B, B)),
    "all_gather flat async": ("all_gather", (B, B)),
    "all_gather coalesced": ("all_gather", (2 * B, 2 * B)),
    "reduce_scatter": ("reduce_scatter", (B, B)),
    "reduce_scatter flat": ("reduce_scatter", (B, B)),
    "reduce_scatter coalesced": ("reduce_scatter", (2 * B, 2 * B)),
    "all_to_all": ("all_to_all", (B / 2, B / 2)),
    "all_to_all flat": ("all_to_all", (B / 2, B / 2)),
    "all_to_all uneven": ("all_to_all", (0.9 * B, 0.3 * B)),
    "all_to_all one way": ("all_to_all", (B, 0)),
    "broadcast": ("broadcast", (B / 2, B / 2)),
    "reduce": ("reduce", (B / 2, B / 2)),
    "gather": ("gather", (B, B)),
    "scatter": ("scatter", (B, B)),
    "send": ("send", (B, 0)),
    "send batched": ("send", (B, B)),
    "barrier": ("barrier", (0, 0)),
    "functional all_reduce": ("all_reduce", (B, B)),
    "functional average": ("all_reduce", (B, B)),
    "functional all_reduce coalesced": ("all_reduce", (2 * B, 2 * B)),
    "functional all_gather": ("all_gather", (B, B)),
    "functional reduce_scatter": ("reduce_scatter", (B, B)),
    "functional all_to_all": ("all_to_all", (B / 2, B / 2)),
    "functional all_to_all uneven": ("all_to_all", (0.9 * B, 0.3 * B)),
    "functional broadcast": ("broadcast", (B / 2, B / 2)),
}


@pytest.fixture(scope="module")
def collectives(ranks: Ranks) -> list[Any]:
    return ranks("collectives")


@pytest.mark.parametrize("way", EXPECTED)
def test_a_collective_counts_as_the_ring_sends_it(collectives: list[Any], way: str) -> None:
    label, expected = EXPECTED[way]
    counted = [rank[way] for rank in collectives]
    if isinstance(counted[0], str):
        pytest.skip(counted[0])
    assert all(set(by_op) <= {label} for by_op in counted)
    assert [by_op.get(label, {"bytes": 0})["bytes"] for by_op in counted] == pytest.approx(expected)
    assert sum(op["control"] for by_op in counted for op in by_op.values()) == 0


def test_every_way_that_was_asked_is_checked(collectives: list[Any]) -> None:
    assert collectives[0].keys() - EXPECTED.keys() == {"all_reduce small", "functional all_gather and back"}


def test_losses_norms_and_flags_count_as_control_not_as_data(collectives: list[Any]) -> None:
    assert collectives[0]["all_reduce small"] == {"all_reduce": {"calls": 1, "bytes": 0, "control": CONTROL}}


def test_a_collective_in_the_backward_pass_is_counted(collectives: list[Any]) -> None:
    by_op = collectives[0]["functional all_gather and back"]
    assert {name: op["bytes"] for name, op in by_op.items()} == {"all_gather": B, "reduce_scatter": B}


def test_bytes_are_kept_apart_by_the_ranks_that_take_part(ranks: Ranks) -> None:
    found = ranks("groups", 4)
    assert found[0] == {(0, 1): B, (0, 1, 2, 3): 3 * B}
    assert found[1] == {(0, 1): B, (0, 1, 2, 3): 3 * B, (1, 3): B}
    assert found[3] == {(2, 3): B, (0, 1, 2, 3): 3 * B}


def test_ddp_sends_its_gradient_once_around_the_ring(ranks: Ranks) -> None:
    for found in ranks("ddp"):
        assert sum(op["bytes"] for op in found["by_op"].values()) == 4 * sum(found["sizes"])
        assert set(found["by_op"]) == {"all_reduce"}


def test_fsdp2_gathers_what_it_released_twice_and_scatters_the_gradient(ranks: Ranks) -> None:
    first = 100 * 100 + 100  # gathered again for the backward pass
    last = 100 * 10 + 10  # kept
    for found in ranks("fsdp"):
        assert found["by_op"]["all_gather"]["bytes"] == 4 * (2 * first + last) / 2
        assert found["by_op"]["reduce_scatter"]["bytes"] == 4 * (first + last) / 2


def test_a_collective_that_the_meter_does_not_know_is_an_error() -> None:
    library = torch.library.Library("c10d", "FRAGMENT")
    library.define("telepathy_(Tensor x) -> Tensor")
    library.impl("telepathy_", lambda x: x.clone(), "CPU")
    with pytest.raises(ValueError, match="does not know the collective 'telepathy_'"), Traffic():
        torch.ops.c10d.telepathy_(torch.ones(2))


def test_other_operators_are_not_counted_as_collectives() -> None:
    with Traffic() as traffic:
        torch.ones(100) @ torch.ones(100)
    assert traffic.by_op == {}
    assert (traffic.bytes, traffic.control) == (0, 0)
