"""The number of worlds in which a schedule is watched, and the one that counts."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harness import catalog
from harness.judge.timeline import replay
from harness.measures import timeline
from harness.spec import Case, Measurement, Span, Topology, Workload
from impls.parallelism.pipeline_parallel.schedules import one_f_one_b

CASE = Case("pipeline_parallel", "1f1b", "reference", Topology(pp=2), Workload(micro_batches=8))


def world(stretch: float, wait: float) -> list[list[list[Span]]]:
    """Three rounds on each of two ranks; rank 1 is ``stretch`` times as slow, and waits before every action."""
    actions = one_f_one_b(2, 8).actions
    spans = [[Span(*action, at, at + 1) for at, action in enumerate(mine)] for mine in actions]
    played = replay(spans, lambda rank, s: (1.0 + (s.kind == "B")) * stretch**rank, lambda rank, s: wait * rank)
    return [[mine] * 3 for mine in played]


def watched(
    *worlds: list[list[list[Span]]], cores: int = 1, device: str = "cpu", case: Case = CASE
) -> tuple[list[Measurement], int]:
    """The measurements for ranks on this many ``cores``, and the number of ``worlds`` that were watched."""
    left: list[Any] = list(worlds)
    runner = SimpleNamespace(
        rest=lambda: None,
        cores=cores,
        launcher=SimpleNamespace(device=device, watch=lambda: SimpleNamespace(disturbance=lambda: "")),
        card=lambda case: catalog.topics()[case.topic],
        run=lambda *_, **__: left.pop(0),
    )
    lab: Any = SimpleNamespace(runner=runner)
    return timeline.take(lab, case), len(worlds) - len(left)


EVEN, SLOW_RANK, SLOWER_RANK, LATE = world(1.0, 0.0), world(1.4, 0.0), world(1.8, 0.0), world(1.0, 0.5)


@pytest.mark.parametrize(
    ("worlds", "verdict", "looks"),
    [
        ([EVEN, SLOW_RANK], "pass", 1),
        ([SLOW_RANK, EVEN], "pass", 2),  # a difference between equal actions in only one world is the machine's
        ([SLOW_RANK, SLOWER_RANK], "fail", 2),  # in all worlds it is the engine's
    ],
)
def test_on_gpus_stages_that_differ_count_and_the_world_with_the_smallest_bubble(
    worlds: list[Any], verdict: str, looks: int
) -> None:
    found, looked = watched(*worlds, cores=2, device="cuda")
    assert {measurement.quantity: measurement.verdict for measurement in found}["bubble"] == verdict
    assert looked == looks


@pytest.mark.parametrize(
    ("first", "cores", "verdict"),
    [(EVEN, 2, "pass"), (SLOW_RANK, 2, "pass"), (LATE, 2, "fail"), (SLOW_RANK, 1, "pass"), (LATE, 1, "pass")],
)
def test_one_world_is_enough_if_each_rank_has_a_core(first: Any, cores: int, verdict: str) -> None:
    """A slower core does not count, and messages are equally late in any world; a replay with one core each has
    none."""
    found, looked = watched(first, EVEN, cores=cores)
    assert {measurement.quantity: measurement.verdict for measurement in found}["bubble"] == verdict
    assert looked == 1


@pytest.mark.parametrize("worlds", [[SLOW_RANK, SLOWER_RANK], [SLOWER_RANK, SLOW_RANK]])
def test_the_smaller_of_two_excessive_bubbles_is_reported(worlds: list[Any]) -> None:
    smaller = watched(SLOW_RANK, SLOW_RANK, device="cuda")[0][0].value
    assert watched(*worlds, device="cuda")[0][0].value == smaller


def serial() -> list[list[list[Span]]]:
    """One micro-batch at a time: half of the time is idle, whatever the actions' lengths."""
    order = [[(kind, rank, micro) for micro in range(8) for kind in "FB"] for rank in range(2)]
    spans = [[Span(*action, at, at + 1) for at, action in enumerate(mine)] for mine in order]
    return [[mine] * 3 for mine in replay(spans, lambda rank, s: 1.0)]


@pytest.mark.parametrize(("engine", "cores"), [("torch", 2), ("torch", 1), ("reference", 1)])
def test_on_cpu_ranks_a_bubble_beyond_its_bound_is_told_and_not_failed(engine: str, cores: int) -> None:
    """Except for a reference whose ranks have a core each."""

    def verdict(engine: str, cores: int, device: str = "cpu") -> str:
        found, _ = watched(serial(), serial(), cores=cores, device=device, case=replace(CASE, engine=engine))
        return next(measurement.verdict for measurement in found if measurement.quantity == "bubble")

    assert verdict(engine, cores) == "inconclusive"
    assert verdict(engine, cores, "cuda") == verdict("reference", 2) == "fail"
