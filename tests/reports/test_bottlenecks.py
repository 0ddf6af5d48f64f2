"""What bounds each step: a chart of the parts by engine, a roofline of all cases, and a sentence a case."""

import re
from typing import Any

import pytest

from reports import bottlenecks, render, tidy
from tests.reports import planted
from tests.reports.planted import measurement

SHARES = {"arithmetic": 0.5, "memory": 0.2, "communication": 0.2, "idle": 0.0, "host": 0.1}


def profiled(engine: str, verdict: str = "pass", **detail: Any) -> planted.Record:
    base = planted._base("zero", "zero1", engine, "dp2", "fp32", "cpu")
    about = {
        "shares": SHARES,
        "bound": "arithmetic",
        "hidden": 0.1,
        "step": 0.01,
        "flops": 1e9,
        "bytes": 1e8,
        "flops_ceiling": 4e11,
        "bandwidth_ceiling": 2e10,
        "collectives": {"all_reduce": [1e-4, 3e9]},
        **detail,
    }
    reason = f"bound by arithmetic in {engine}"
    return base | measurement("bottleneck", "added_up", 1.01, "of the step", verdict, reason=reason, detail=about)


def found(*records: planted.Record) -> bottlenecks.Bottlenecks:
    result = bottlenecks.bottlenecks(tidy.view(list(records), planted.run(), {}))
    assert result is not None
    return result


def test_every_profiled_case_has_a_sentence_and_a_point_coloured_by_what_bounds_it() -> None:
    shown = found(profiled("torch"), profiled("deepspeed", "inconclusive", step=0.02))
    assert [one.text for one in shown.sentences["zero"]] == [
        "bound by arithmetic in torch",
        "bound by arithmetic in deepspeed",
    ]
    assert shown.roofline is not None
    colours = re.findall(r'<circle [^>]*fill="(var\(--\w+\))"', shown.roofline.svg)
    assert sorted(colours) == ["var(--p0)", "var(--skipped)"]
    assert [name for _, _, name in shown.roofline.legend] == ["bound by arithmetic", bottlenecks.UNDECIDED]


def test_the_roof_is_the_best_that_the_run_attained() -> None:
    shown = found(profiled("torch"), profiled("megatron", flops_ceiling=9e11))
    assert shown.ceilings["products, fp32, dp2"] == "900.0 GFLOP/s"
    assert shown.ceilings["all_reduce, dp2"].endswith("3.00 GB/s a rank")


def test_a_step_without_products_has_a_sentence_and_no_point() -> None:
    assert found(profiled("torch", flops=0.0)).roofline is None


def test_the_parts_of_a_step_are_stacked_by_engine() -> None:
    (topic,) = tidy.view([profiled("torch"), profiled("deepspeed")], planted.run(), {}).topics
    chart = bottlenecks.shares(topic)
    assert chart is not None
    assert [name for _, _, name in chart.legend] == ["arithmetic", "memory traffic", "communication", "host"]
    assert "% of a step" in chart.svg


@pytest.mark.parametrize("profiles", [True, False])
def test_the_page_has_the_section_only_if_steps_were_profiled(profiles: bool) -> None:
    records = planted.records() + ([profiled("torch")] if profiles else [])
    page = render.render(records, planted.run())
    assert ('id="bottlenecks"' in page) == profiles
    assert ("bound by arithmetic in torch" in page) == profiles
