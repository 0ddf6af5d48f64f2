"""A finding must stay true: a symptom that matches no failure any more is found, by a session that can tell."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness import findings
from harness.run.recorder import Recorder
from harness.spec import Case, Measurement, Symptom, Topology, Workload
from tests.findings.examples import RECORD, SYMPTOM, read

CASE = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(lambda case, found: None, [read(RECORD + SYMPTOM, tmp_path)])


def found(*verdicts: str, size: float = 0.0) -> list[Measurement]:
    """Figures over their law: within the band, but those that pass."""
    sizes = {verdict: size or (1.0 if verdict == "pass" else 1.3) for verdict in verdicts}
    return [Measurement("memory", "peak", sizes[v] * 10, "B", v, "measured", law=10.0) for v in verdicts]


def stale(recorder: Recorder, every: Sequence[Case] = (CASE,), ran: Collection[str] = (CASE.id,)) -> list[Symptom]:
    return recorder.stale(recorder.findings[0], every, ran)


@pytest.mark.parametrize(
    ("verdict", "still"), [("fail", True), ("pass", False), ("skipped", True), ("inconclusive", True)]
)
def test_a_symptom_is_there_as_long_as_what_it_covers_fails(recorder: Recorder, verdict: str, still: bool) -> None:
    (recorded,) = recorder.record(CASE, found(verdict), {})
    assert recorded.detail.get("finding") == ("deepspeed_copy" if verdict == "fail" else None)
    assert (stale(recorder) == []) is still


def test_a_figure_in_the_band_is_the_fault_even_where_it_passes_by_a_little(recorder: Recorder) -> None:
    (recorded,) = recorder.record(CASE, found("pass", size=1.2), {})
    assert "finding" not in recorded.detail
    assert stale(recorder) == []


def test_a_failure_outside_the_band_is_not_covered_and_names_the_finding_that_it_nearly_matches(
    recorder: Recorder,
) -> None:
    (recorded,) = recorder.record(CASE, found("fail", size=1.6), {})
    assert "finding" not in recorded.detail
    expected = "measured; size 1.6, which no finding covers; nearest deepspeed_copy: memory peak of zero?-deepspeed-*"
    assert recorded.reason == f"{expected} (between 1.2 and 1.4)"
    assert stale(recorder) == []  # its own test fails; it is not fixed


def test_a_user_s_own_work_is_told_that_the_bands_are_of_other_work(recorder: Recorder) -> None:
    own = replace(CASE, workload=CASE.workload.with_(data="talk.jsonl"))
    (recorded,) = recorder.record(own, found("fail", size=1.6), {})
    assert recorded.reason.endswith(
        "(between 1.2 and 1.4); its band was measured on the suites' own work, and yours "
        "may well show the same fault otherwise"
    )
    assert "finding" not in recorded.detail


def test_each_symptom_that_is_gone_is_named(recorder: Recorder) -> None:
    (first,) = recorder.findings[0].symptoms
    second = replace(first, quantity="states")
    recorder.findings = (replace(recorder.findings[0], symptoms=(first, second)),)
    states = Measurement("memory", "states", 10.0, "B", "pass", "measured", law=10.0)
    recorder.record(CASE, [*found("fail"), states], {})
    assert stale(recorder) == [second]


@pytest.mark.parametrize(("verdict", "still"), [("fail", True), ("skipped", False), ("inconclusive", True)])
def test_beside_a_figure_that_passes_one_that_is_undecided_leaves_a_symptom_alone(
    recorder: Recorder, verdict: str, still: bool
) -> None:
    recorder.record(CASE, found("pass", verdict), {})
    assert (stale(recorder) == []) is still


@pytest.mark.parametrize(("device", "still"), [("", True), ("cuda", False)])
def test_a_session_on_gpus_holds_only_their_own_symptoms_to_account(
    device: str, still: bool, recorder: Recorder
) -> None:
    recorder.device = "cuda"
    (symptom,) = recorder.findings[0].symptoms
    recorder.findings = (replace(recorder.findings[0], symptoms=(replace(symptom, device=device),)),)
    recorder.record(CASE, found("pass"), {})
    assert (stale(recorder) == []) is still


def test_a_session_that_did_not_run_a_case_cannot_tell(recorder: Recorder) -> None:
    recorder.record(CASE, found("pass"), {})
    assert stale(recorder)
    assert stale(recorder, ran=()) == []


def test_a_symptom_that_matches_no_case_is_stale_and_one_of_other_cases_is_left_alone(recorder: Recorder) -> None:
    assert stale(recorder) == []  # nothing was measured: a session of other measures
    assert stale(recorder, every=[Case("data_parallel", "ddp", "torch", Topology(dp=2), Workload())])


def test_a_session_of_some_cases_can_tell_of_a_symptom_whose_cases_it_ran(recorder: Recorder) -> None:
    recorder.record(CASE, found("pass"), {})
    assert stale(recorder, every=[CASE, replace(CASE, engine="torch")])
    assert stale(recorder, every=[CASE, replace(CASE, variant="zero1")]) == []


def test_a_case_whose_parity_is_known_to_fail_is_wrong(recorder: Recorder) -> None:
    assert not recorder.wrong(CASE)
    (symptom,) = recorder.findings[0].symptoms
    recorder.findings = (replace(recorder.findings[0], symptoms=(replace(symptom, measure="parity"),)),)
    assert recorder.wrong(CASE)
    assert not recorder.wrong(replace(CASE, engine="torch"))


def test_a_session_cannot_show_what_its_release_has_repaired_nor_what_another_device_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "version", lambda name: "0.19.9")
    seen = read(RECORD + SYMPTOM, tmp_path)
    repaired = replace(seen, right=("deepspeed 0.19.9",))
    symptoms = (replace(seen.symptoms[0], device="cuda"), *seen.symptoms)
    known = (seen, repaired, replace(seen, symptoms=symptoms))
    assert findings.to_be_seen(known, "cpu") == (seen, seen)
    assert findings.to_be_seen(known, "cuda") == (seen, known[2])
