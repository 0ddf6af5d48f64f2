"""The margin of parity against what was measured: honest runs stay far below it, planted faults far above."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from harness.judge import calibration
from harness.judge.parity import MARGIN
from harness.plan import cases as plan
from harness.spec import Flows
from tests.planted.calibration import CAPABILITIES, DTYPES, TURNS, beyond, honest, table
from tests.planted.faults import EVERY, FAULTS

FOUND = calibration.read()
# A figure that is missing, or is of other tensors, has no ratio.
LACKING = ("values_without_a_gradient", "adapter_beside_the_targets", "results_have_no_adapter")
LINES = {(line["quantity"], line["dtype"]): line for line in FOUND["table"]}


def test_every_instruction_set_was_measured_with_ten_seeds_or_more() -> None:
    assert set(FOUND["capabilities"]) == set(CAPABILITIES)
    assert FOUND["seeds"] >= 10
    assert FOUND["margin"] == MARGIN


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_quantity_was_measured_in_every_precision(dtype: str) -> None:
    kinds = ("gradient", "later gradients", "update", "output")
    slopes = {f"{kind} slope" for kind in kinds}
    assert {name for name, other in LINES if other == dtype} == {"loss", "replayed update", *kinds, *slopes}


@pytest.mark.parametrize("line", FOUND["table"], ids=lambda line: f"{line['quantity']}-{line['dtype']}")
def test_no_honest_run_is_above_half_the_bound_and_no_fault_below_twice_it(line: Mapping[str, Any]) -> None:
    assert line["runs"] >= 50
    assert line["largest"] <= MARGIN / 2, line["where"]
    assert line.get("smallest", 2 * MARGIN) >= 2 * MARGIN, line.get("fault")


def test_every_fault_was_measured() -> None:
    for dtype in DTYPES:
        for name, line in ((name, line) for (name, other), line in LINES.items() if other == dtype):
            must = [p.name for p in EVERY if name in p.figures("parity", dtype) and p.name not in LACKING]
            unseen = sum(fault in must for faults in FOUND["unmeasured"].values() for fault in faults)
            assert line["faults"] == len(CAPABILITIES) * len(must) - unseen


def test_what_an_instruction_set_has_not_measured_are_few_faults_and_another_has() -> None:
    unseen = [fault for faults in FOUND["unmeasured"].values() for fault in faults]
    assert set(unseen) <= set(FAULTS)
    assert len(set(unseen)) == len(unseen) <= len(FAULTS) / 15


def test_a_whole_run_of_honest_engines_shows_a_false_alarm_less_than_once_in_a_hundred() -> None:
    """As if every figure of parity of the full depth had the chance of the likeliest."""
    request = plan.Request(ranks=8)
    cards = plan.cards(request)
    cases = [c for c in plan.cases(request, cards) if "parity" in plan.measures(c, request, cards[c.topic])]
    alarms = sum(
        line["chance"] * sum(case.workload.dtype == dtype for case in cases) for (_, dtype), line in LINES.items()
    )
    assert alarms < 0.01


def test_the_matrix_shows_every_fault_and_that_the_measures_that_it_names_find_it() -> None:
    rows = {row["fault"]: row["found"] for row in calibration.kills()}
    assert rows.keys() == FAULTS.keys()
    assert len(rows) >= 80
    for name, found in rows.items():
        for measure, by_dtype in FAULTS[name].fault.finds.items():
            assert set(found[measure]) & set().union(*by_dtype.values()), (name, measure)


def test_the_chance_of_an_alarm_is_that_of_the_tail() -> None:
    ratios = np.random.default_rng(0).exponential(size=20_000).tolist()
    assert beyond(ratios, 6.0) == pytest.approx(np.exp(-6.0), rel=0.3)
    normal = np.abs(np.random.default_rng(1).standard_normal(20_000)).tolist()
    assert beyond(normal, 4.0) > 2 * norm.sf(4.0)
    assert beyond([1.0] * 100, 3.0) == 0.0


def test_honest_are_all_references_in_both_precisions() -> None:
    cards, cases = honest(range(TURNS))
    assert {case.workload.dtype for case in cases} == set(DTYPES)
    assert {case.topic for case in cases} == {n for n, card in cards.items() if not isinstance(card.contract, Flows)}
    assert {case.engine for case in cases} == {"reference", "two_threads", "other_sums"}


def test_a_table_keeps_the_largest_honest_and_the_smallest_faulty_ratio() -> None:
    name = "larger_rate"
    rows = [
        {"case": "a", "engine": "reference", "dtype": "fp32", "quantity": "update", "ratio": 1.0},
        {"case": "b", "engine": "reference", "dtype": "fp32", "quantity": "update", "ratio": 1.5},
        {"case": "c", "engine": name, "dtype": "fp32", "quantity": "update", "ratio": 90.0},
        {"case": "d", "engine": name, "dtype": "fp32", "quantity": "update", "ratio": 80.0},
        {"case": "e", "engine": name, "dtype": "fp32", "quantity": "gradient", "ratio": 0.0},
    ]
    gradient, update = table([*rows, {**rows[0], "quantity": "gradient"}])
    assert (update["largest"], update["where"], update["smallest"], update["fault"]) == (1.5, "b", 80.0, name)
    assert (update["runs"], update["faults"], gradient["faults"]) == (2, 2, 0)
