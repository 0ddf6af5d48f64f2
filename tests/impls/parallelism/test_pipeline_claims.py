"""Verdicts on published figures of pipelines, for even, uneven, other and missing timelines."""

from typing import Any

import pytest

from harness.judge import timeline
from harness.plan import cases as plan
from harness.spec import Span
from impls.parallelism.pipeline_parallel import CARD, claims
from impls.parallelism.pipeline_parallel.plan import Plan
from impls.parallelism.pipeline_parallel.schedules import SCHEDULES

CHECKS = {claim.name: getattr(claims, claim.check.partition(":")[2]) for claim in CARD.claims}
UNIT = {"F": 10.0, "B": 10.0, "W": 10.0}
WHOLE = {"F": 10.0, "B": 20.0}  # B includes the weights' part


def about(topology: str) -> dict[str, Any]:
    return {**claims.TIMELINE, "topology": topology, "workload": claims.WORK[topology]}


def record(variant: str, plan: Plan, times: dict[str, float], stretched: float = 1.0) -> dict[str, Any]:
    """The bubble of a timeline with this plan's ideal; in the measured one the first stage takes ``stretched`` times as
    long."""
    spans = [[Span(*a, at, at + 1) for at, a in enumerate(actions)] for actions in plan.actions]
    ideal = timeline.replay(spans, lambda rank, s: times[s.kind])
    shown = timeline.replay(spans, lambda rank, s: times[s.kind] * (1 if rank else stretched))
    return {
        **about(f"pp{len(plan.actions)}"),
        "quantity": "bubble",
        "variant": variant,
        "value": timeline.bubble(shown),
        "detail": {
            "ideal": [[[*s] for s in row] for row in ideal],
            "replayed": True,
            "times": {"F": 0.0, "B": 0.0, "W": 0.0} | times,
        },
    }


def in_flight(variant: str, value: float) -> dict[str, Any]:
    return about("pp4") | {"quantity": "in_flight", "variant": variant, "value": value, "detail": {}}


@pytest.mark.parametrize(
    ("told", "variants"),
    [
        (about("pp2"), {"gpipe"}),
        (about("pp4"), set(CARD.variants)),
        (claims.MEMORY | {"topology": "pp4"}, set(CARD.variants)),
    ],
)
def test_the_sources_of_the_figures_are_measured(told: dict[str, str], variants: set[str]) -> None:
    request = plan.Request(topics=(CARD.name,), engines=(told["engine"],), topologies=(told["topology"],))
    looked_at = [
        case
        for case in plan.cases(request, {CARD.name: CARD})
        if (case.workload.name, case.workload.dtype) == (told["workload"], told["dtype"])
        and case.workload.micro_batches == claims.MICRO_BATCHES
    ]
    assert {case.variant for case in looked_at} >= variants
    assert all(told["measure"] in plan.measures(case, request, CARD) for case in looked_at)


def test_four_micro_batches_a_stage_are_told_from_two_stages() -> None:
    told = record("gpipe", SCHEDULES["gpipe"](2, 8), WHOLE)
    found = claims.enough_micro_batches([told])
    assert found.value == pytest.approx(1 / 9)
    assert "replayed" in found.reason
    told["detail"] |= {"replayed": False, "alike": True}
    assert "measured, but for actions of a kind equally long" in claims.enough_micro_batches([told]).reason


def test_every_figure_can_be_told_without_a_measurement() -> None:
    found = {name: check([]) for name, check in CHECKS.items()}
    assert {measurement.detail["status"] for measurement in found.values()} == {
        "out of reach here",
        "formula only",
        "contradicted",
    }
    assert "all six figures follow from the formula" in found["course_bubble"].detail["arithmetic"]


def test_even_stages_reproduce_what_is_promised_for_them() -> None:
    records = [
        record("gpipe", SCHEDULES["gpipe"](4, 8), WHOLE),
        record("1f1b", SCHEDULES["1f1b"](4, 8), WHOLE),
        record("interleaved", SCHEDULES["interleaved"](4, 8, 2), {"F": 5.0, "B": 10.0}),
        record("zb_h1", SCHEDULES["zb_h1"](4, 8), UNIT),
        in_flight("1f1b", 4.0),
        in_flight("zb_h1", 4.0),
    ]
    for name in ("course_bubble", "interleaved", "zb_h1"):
        found = CHECKS[name](records)
        assert found.detail["status"] == "reproduced", found.reason
        assert found.value == pytest.approx(found.law, rel=0.01)
    assert CHECKS["course_schedules"](records).value == pytest.approx(1.0)


def test_uneven_stages_tell_nothing_about_a_formula_for_even_ones() -> None:
    found = CHECKS["course_bubble"]([record("gpipe", SCHEDULES["gpipe"](4, 8), WHOLE, stretched=1.5)])
    assert found.detail["status"] == "out of reach here"
    assert found.detail["ideal"] == pytest.approx(3 / 11)


def test_a_schedule_that_idles_longer_contradicts_the_formula() -> None:
    found = CHECKS["course_bubble"]([record("gpipe", SCHEDULES["gpipe"](4, 4), WHOLE)])
    assert found.detail["status"] == "contradicted"


def test_a_third_of_the_bubble_at_more_memory_contradicts_the_claim() -> None:
    timelines = [record(name, SCHEDULES[name](4, 8), UNIT if name == "zb_h1" else WHOLE) for name in ("zb_h1", "1f1b")]
    found = CHECKS["zb_h1"]([*timelines, in_flight("1f1b", 4.0), in_flight("zb_h1", 7.0)])
    assert found.detail["status"] == "contradicted"
    assert "7 micro-batches in flight for 4" in found.reason


def test_a_third_is_not_expected_of_weight_gradients_that_are_quick() -> None:
    times = {"F": 10.0, "B": 10.0, "W": 5.0}
    records = [record("zb_h1", SCHEDULES["zb_h1"](4, 8), times), record("1f1b", SCHEDULES["1f1b"](4, 8), WHOLE)]
    found = CHECKS["zb_h1"]([*records, in_flight("1f1b", 4.0), in_flight("zb_h1", 4.0)])
    assert found.detail["status"] == "out of reach here"
    assert found.detail["formula"] == pytest.approx(15 / 25)


def test_twice_the_parameters_are_told_from_model_states() -> None:
    about = claims.MEMORY | {"quantity": "states", "topology": "pp4", "detail": {}}
    states = [about | {"variant": "1f1b", "value": 100.0}, about | {"variant": "dual_pipe", "value": 198.0}]
    assert CHECKS["dual_pipe_memory"](states).detail["status"] == "reproduced"
    states[1]["value"] = 150.0
    assert CHECKS["dual_pipe_memory"](states).detail["status"] == "contradicted"
