"""The part of the grid that a depth runs: every engine once, every pair of choices, or all of it."""

import re
from collections.abc import Iterable
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan import cases as plan
from harness.plan import depth
from harness.plan.cases import Request
from harness.spec import Case, Topology, Workload
from harness.spec.grid import TRAINER_GRID
from tests.sessions import run

EVERY = Request(ranks=8)


def planned(**changes: object) -> list[Case]:
    request = Request(ranks=8, **changes)
    return plan.cases(request, plan.cards(request))


def pairs(cases: Iterable[Case]) -> set[tuple[str, ...]]:
    """Pairs of variant, engine, topology and work, each with its topic."""
    found = set()
    for case in cases:
        work = f"{case.workload.name} {case.workload.dtype}"
        values = enumerate((case.variant, case.engine, str(case.topology), work))
        found |= {(case.topic, *map(str, one + other)) for one, other in combinations(values, 2)}
    return found


def test_quick_is_every_variant_of_every_engine_once_with_parity_and_memory() -> None:
    cases = planned(depth="quick")
    keys = [(case.topic, case.variant, case.engine) for case in cases]
    assert len(keys) == len(set(keys))
    assert set(keys) == {(case.topic, case.variant, case.engine) for case in planned()}
    request = Request(depth="quick", ranks=8)
    assert {m for c in cases for m in plan.measures(c, request, plan.cards(EVERY)[c.topic])} == {"parity", "memory"}
    sizes: dict[tuple[str, ...], set[int]] = {(case.topic, case.variant, case.engine): set() for case in cases}
    for case in planned():
        sizes[case.topic, case.variant, case.engine].add(case.topology.world_size)
    for case in cases:
        several = sizes[case.topic, case.variant, case.engine] - {1}
        assert case.topology.world_size == min(several, default=1)


def test_default_shows_every_pair_of_the_rows_that_are_not_of_full_alone_with_half_of_its_cases() -> None:
    full, default, cards = planned(), planned(depth="default"), plan.cards(EVERY)

    def alone(case: Case) -> bool:
        rows = (cards[case.topic].grid or TRAINER_GRID).rows
        mine = case.workload.name, case.workload.dtype
        return any(row.full and (getattr(row.work, "name", row.work), row.dtype) == mine for row in rows)

    assert not any(map(alone, default))
    assert {case.topic for case in full if alone(case)} >= {"zero", "data_parallel", "tensor_parallel"}
    assert pairs(default) == pairs(case for case in full if not alone(case))
    assert set(default) < set(full)
    assert len(default) < 0.5 * len(full)


def test_default_times_what_full_times_so_that_engines_have_their_peers() -> None:
    def quiet(depth: str) -> set[str]:
        request = Request(depth=depth, ranks=8)
        cards = plan.cards(request)
        found = plan.cases(request, cards)
        return {c.id for c in found if "throughput" in plan.measures(c, request, cards[c.topic])}

    assert quiet("default") == quiet("full")


def test_each_of_a_topics_cases_is_the_same_whatever_other_topics_are_asked_for() -> None:
    alone = planned(depth="default", topics=("zero",))
    assert alone == [case for case in planned(depth="default") if case.topic == "zero"]


@pytest.mark.parametrize("asked", [{"workloads": ("tiny",)}, {"topologies": ("dp2",)}, {"dtypes": ("bf16",)}])
def test_requested_work_runs_completely(asked: dict[str, object]) -> None:
    assert planned(topics=("zero",), depth="default", **asked) == planned(topics=("zero",), **asked)


def test_measures_that_are_asked_for_are_taken_at_quick_depth_too() -> None:
    request = Request(depth="quick", measures=("traffic",), topics=("zero",))
    cards = plan.cards(request)
    taken = {m for c in plan.cases(request, cards) for m in plan.measures(c, request, cards[c.topic])}
    assert taken == {"traffic"}


SOME = st.lists(
    st.builds(
        Case,
        topic=st.sampled_from(["t", "u"]),
        variant=st.sampled_from(["v", "w"]),
        engine=st.sampled_from(["a", "b", "c"]),
        topology=st.sampled_from([Topology(), Topology(dp=2), Topology(tp=2)]),
        workload=st.sampled_from([Workload(), Workload("other"), Workload(dtype="bf16")]),
    ),
    unique_by=lambda case: case.id,
)


@given(SOME, st.randoms())
def test_no_pair_is_lost_and_given_cases_stay(cases: list[Case], random: object) -> None:
    kept = set(random.sample(cases, len(cases) // 3))  # type: ignore[attr-defined]
    chosen = depth.pairwise(cases, lambda case: case in kept)
    assert pairs(chosen) == pairs(cases)
    assert kept <= set(chosen)
    assert [case for case in cases if case in chosen] == chosen


def test_a_run_says_before_it_starts_what_each_depth_has_and_about_how_long_it_takes(user: pytest.Pytester) -> None:
    found = run(user, "--collect-only", "--topics", "zero", "-k", "zero1 and traffic").outlines
    quick, default, full = (next(line for line in found if f"--depth {name} " in line) for name in depth.DEPTHS)
    assert [line.startswith("*") for line in (quick, default, full)] == [False, True, False]
    request = Request(("zero",), depth="quick", ranks=8)
    assert f"{len(plan.cases(request, plan.cards(request)))} cases" in quick
    assert all(re.search(r"[\d,]+ cases +[\d,]+ tests, about \d+ min", line) for line in (quick, default, full))
    assert any(line.startswith("  selected: ") for line in found)


def test_more_cases_take_longer_and_more_cores_less() -> None:
    request = Request(ranks=8)
    cards = plan.cards(request)
    measures = {case: plan.measures(case, request, cards[case.topic]) for case in plan.cases(request, cards)}
    some = dict(list(measures.items())[:100])
    assert depth.minutes(some, 2) < depth.minutes(measures, 2)
    assert depth.minutes(measures, 8) < depth.minutes(measures, 2)
