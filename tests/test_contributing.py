"""CONTRIBUTING shows the code that exists, and names every field of a card."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from harness.measures import MEASURES
from harness.run.recorder import Recorder
from harness.spec import (
    Case,
    Claim,
    Engine,
    Flows,
    Functions,
    Grid,
    Law,
    Measurement,
    Row,
    Topology,
    Trainers,
    Workload,
)
from harness.spec.measurement import STATUSES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SHOWN = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)\n```", TEXT, re.DOTALL))


def test_the_worked_example_is_a_whole_topic() -> None:
    folder = ROOT / "tests" / "examples" / "extraction"
    assert {ROOT / name for name in SHOWN} == set(folder.glob("*.py"))


@pytest.mark.parametrize("name", SHOWN)
def test_the_worked_example_is_the_code_that_is_tested(name: str) -> None:
    assert SHOWN[name] == (ROOT / name).read_text("utf-8").strip()


def test_every_field_of_a_card_s_parts_is_named() -> None:
    for part in (Trainers, Functions, Flows, Engine, Law, Claim, Grid):
        assert f"{part.__name__}({', '.join(field.name for field in fields(part))})" in TEXT.replace("\n", " ")
    assert f"Row({', '.join(Row._fields)})" in TEXT


def test_every_quantity_that_a_law_may_promise_is_named() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE))
    assert rows.keys() == {name for name, measure in MEASURES.items() if measure.QUANTITIES}
    for name, row in rows.items():
        assert all(f"`{quantity}`" in row for quantity in MEASURES[name].QUANTITIES), name


def test_every_column_that_a_claim_is_given_and_every_status_is_named() -> None:
    case, recorder = Case("t", "v", "e", Topology(), Workload()), Recorder(lambda case, found: None)
    recorder.record(case, [Measurement("memory", "peak", 1.0, "B", "pass", "")], {})
    (record,) = recorder.records([case])
    assert all(f"`{column}`" in TEXT for column in record)
    assert all(status in TEXT.replace("\n", " ") for status in STATUSES)
