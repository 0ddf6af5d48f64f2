"""A finding's state by the records of one release's cases."""

from pathlib import Path
from typing import Any

import pytest

from harness import findings
from harness.findings import Finding
from harness.spec import Case, Measurement, Topology, Workload
from harness.spec.requires import ANOTHER
from harness.store.record import row
from harness.versions import RIGHT, UNKNOWN, WRONG, CaseRow, judge
from tests.findings.examples import RECORD, SYMPTOM, read

CASE = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())
OTHER = Case("zero", "ddp", "deepspeed", Topology(dp=2), Workload())
PEAK = Measurement("memory", "peak", 1.0, "B", "pass", "at the law", law=1.0)
COPY = PEAK.but(value=1.3, verdict="fail", reason="30 % above the law")
LOST = Measurement("memory", "run", None, "", "error", "AttributeError: no safe_get_full_grad\nrank 0 · Raised\n…")


@pytest.fixture
def finding(tmp_path: Path) -> Finding:
    return read(RECORD + SYMPTOM, tmp_path)


def records(*measurements: Measurement, case: Case = CASE) -> list[dict[str, Any]]:
    return [row("run", case, "cpu", measurement, "now") for measurement in measurements]


@pytest.mark.parametrize(
    ("measurements", "state", "reason"),
    [
        ([COPY], WRONG, f"{CASE.id}, memory peak: 30 % above the law"),
        ([PEAK], RIGHT, ""),
        ([LOST, COPY], WRONG, "30 % above the law"),
        ([LOST, PEAK], UNKNOWN, "memory run: AttributeError: no safe_get_full_grad"),
        ([COPY.but(value=9.0)], UNKNOWN, "outside of the finding's bands, "),
        ([PEAK.but(verdict="inconclusive", reason="too coarse")], UNKNOWN, "memory peak: too coarse"),
        ([PEAK.but(quantity="states")], UNKNOWN, "no case took the figures that show it"),
        ([LOST.but(verdict="skipped", reason="needs deepspeed>=0.19")], UNKNOWN, "needs deepspeed>=0.19"),
    ],
)
def test_only_a_matching_figure_is_wrong_and_only_passing_ones_are_right(
    measurements: list[Measurement], state: str, reason: str, finding: Finding
) -> None:
    cell = judge.judge(finding, records(*measurements))
    assert cell
    assert (cell.state, cell.by) == (state, "cases")
    assert reason in cell.reason
    assert "\n" not in cell.reason


def test_a_finding_that_no_case_could_show_has_no_state(finding: Finding) -> None:
    assert judge.judge(finding, records(COPY, case=OTHER)) is None
    assert judge.judge(finding, records(COPY.but(measure="parity"))) is None


def test_a_symptom_of_gpus_says_nothing_of_ranks_on_a_cpu(tmp_path: Path) -> None:
    assert judge.judge(read(RECORD + SYMPTOM + 'device = "cuda"\n', tmp_path), records(COPY)) is None


def test_errors_are_counted_and_are_no_verdict_of_a_case(finding: Finding) -> None:
    assert judge.errors(records(LOST, LOST.but(measure="parity"), COPY)) == {"AttributeError: no safe_get_full_grad": 2}
    assert judge.changes({"1.0": records(PEAK), "1.1": records(LOST)}, [finding]) == ()


def test_a_release_that_the_adapter_is_not_written_for_is_told(finding: Finding) -> None:
    needs = LOST.but(verdict="skipped", reason=f"needs deepspeed>=0.19; 0.18.2 {ANOTHER}")
    refused = needs.but(reason="DeepSpeed trains in float32, float16 and bfloat16 only")  # as in every release
    assert judge.errors(records(needs, refused)) == {needs.reason: 1}


def test_a_case_whose_verdict_changes_is_told_unless_a_finding_covers_it(finding: Finding) -> None:
    found = {"1.0": records(PEAK), "1.1": records(PEAK, COPY), "1.2": records(PEAK)}
    assert judge.changes(found, [finding]) == ()
    verdicts = {"1.0": "pass", "1.1": "fail", "1.2": "pass"}
    expected = CaseRow(CASE.id, "memory", verdicts, {"1.1": "peak: 30 % above the law"})
    assert judge.changes(found, []) == (expected,)


def test_findings_of_the_suites_are_of_packages_that_a_user_can_name() -> None:
    from harness.versions import run

    for finding in findings.read():
        for package in run.libraries(finding):
            run.known(package)
