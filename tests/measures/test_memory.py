"""The reported peak is the highest of all ranks and steps; what a step leaves behind is growth."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harness import catalog
from harness.measures import memory, parity, peers
from harness.run.runner import Checked
from harness.spec import Case, Measurement, Occasion, Topology, Workload
from harness.spec.run import Memory, TrainerRun

MINE = Case("zero", "zero1", "reference", Topology(dp=2), Workload())


def taken(*ranks: TrainerRun) -> dict[str, Measurement]:
    runner = SimpleNamespace(checked=lambda case: Checked(ranks), card=lambda case: catalog.topics()["zero"])
    lab: Any = SimpleNamespace(runner=runner)
    return {each.quantity: each for each in memory.take(lab, MINE)}


def rank(*states: float, peak: float = 0.0, nodes: tuple[int, int] = (7, 7)) -> TrainerRun:
    """A rank whose third, fourth and last step hold these bytes."""
    return TrainerRun(memory=[Memory(states=held, peak=peak) for held in states], nodes=nodes)


def test_a_peak_is_that_of_the_rank_and_step_that_have_the_highest() -> None:
    peak = taken(rank(1.0, 1.0, 1.0, peak=2.0), rank(1.0, 1.0, 1.0, peak=3.0 * 2**20))["peak"]
    assert (peak.quantity, peak.value, peak.verdict, peak.bound) == ("peak", 3.0 * 2**20, "pass", None)
    assert "3.00 MiB" in peak.reason


@pytest.mark.parametrize(
    ("states", "verdict"),
    [((64.0, 64.0, 64.0), "pass"), ((64.0, 64.0, 80.0), "pass"), ((64.0, 64.0, 2.0**14), "fail")],
    ids=["nothing", "a scalar", "a leak that begins late"],
)
def test_what_a_step_leaves_behind_is_growth(states: tuple[float, ...], verdict: str) -> None:
    assert taken(rank(64.0, 64.0, 64.0), rank(*states))["growth"].verdict == verdict


@pytest.mark.parametrize(
    ("skipped", "verdict"),
    [((0, 1, 1), "fail"), ((1, 0, 0), "fail"), ((1, 1, 0), "pass"), ((1, 1, 1, 0), "inconclusive")],
)
def test_states_that_the_first_real_step_makes_are_no_growth(skipped: tuple[int, ...], verdict: str) -> None:
    late = replace(rank(64.0, 128.0, 128.0), observed=[{"skipped": float(step)} for step in skipped])
    assert taken(late)["growth"].verdict == verdict


@pytest.mark.parametrize(("nodes", "verdict"), [((7, 7), "pass"), ((7, 0), "pass"), ((7, 8), "fail")])
def test_a_graph_that_is_kept_grows(nodes: tuple[int, int], verdict: str) -> None:
    assert taken(rank(1.0, 1.0, 1.0), rank(1.0, 1.0, 1.0, nodes=nodes))["graph"].verdict == verdict


@pytest.mark.parametrize("weighed", [True, False])
def test_memory_is_compared_where_the_contract_says_so(weighed: bool) -> None:
    card = catalog.topics()["flash_attention"]
    card = replace(card, contract=replace(card.contract, weighed=weighed))
    mine = Case(card.name, "fa2", "reference", Topology(), Workload())
    occasion = Occasion(mine, card, cores=2, timed=False, traced=False, judged=True)
    assert {measure.asked(occasion) for measure in (memory, peers)} == {weighed}
    assert parity.asked(occasion)
