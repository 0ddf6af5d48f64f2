"""Topologies: their names, their numbers of ranks, and texts that are not topologies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.spec import Topology

SIZES = st.integers(1, 16)


@given(dp=SIZES, tp=SIZES, pp=SIZES, cp=SIZES)
def test_a_topology_is_read_back_from_its_name(dp: int, tp: int, pp: int, cp: int) -> None:
    topology = Topology(dp, tp, pp, cp)
    assert Topology.parse(str(topology)) == topology
    assert topology.world_size == dp * tp * pp * cp


def test_axes_of_one_rank_are_left_out_of_the_name_but_never_all() -> None:
    assert str(Topology(dp=2, pp=4)) == "dp2pp4"
    assert str(Topology()) == "dp1"


def test_experts_are_spread_over_data_parallel_ranks() -> None:
    assert Topology(dp=4, ep=2).world_size == 4
    with pytest.raises(ValueError, match="ep 3 does not divide dp 4"):
        Topology(dp=4, ep=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a list of axis sizes such as dp2tp2"),
        ("dp", "is not a list of axis sizes"),
        ("2dp", "is not a list of axis sizes"),
        ("dp2,tp2", "is not a list of axis sizes"),
        ("dp2xp2", "unknown axis 'xp'"),
        ("dp0", "dp must be at least 1"),
    ],
)
def test_an_invalid_topology_is_rejected_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology.parse(text)
