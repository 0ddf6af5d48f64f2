"""Waivers: data that is parsed strictly and must stay true."""

import datetime
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness import waivers
from harness.run.recorder import Recorder
from harness.spec import Case, Measurement, Topology, Workload

TABLE = """
[[waiver]]
case = "zero?-deepspeed-*"
measure = "memory"
quantity = "peak"
reason = "known"
versions = "deepspeed 0.19"
expires = 2999-01-01
"""


def read(text: str, folder: Path) -> tuple[waivers.Waiver, ...]:
    path = folder / "waivers.toml"
    path.write_text(text)
    return waivers.read(path)


def test_a_waiver_is_about_one_figure_of_the_cases_that_it_matches(tmp_path: Path) -> None:
    (waiver,) = read(TABLE, tmp_path)
    peak = Measurement("memory", "peak", 1.0, "B", "fail", "too much")
    assert waiver.about("zero3-deepspeed-dp2-fp32", peak)
    assert not waiver.about("zero3-torch-dp2-fp32", peak)
    assert not waiver.about("zero3-deepspeed-dp2-fp32", peak.but(quantity="states"))
    assert not waiver.expired


@pytest.mark.parametrize(
    ("right", "wrong", "field"), [("reason", "because", "because"), ('versions = "deepspeed 0.19"', "", "versions")]
)
def test_a_wrong_field_is_named(right: str, wrong: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"waiver 1 has a missing or unknown field '({field}|reason)'"):
        read(TABLE.replace(right, wrong), tmp_path)


def test_yesterday_is_expired_and_no_file_is_no_waiver(tmp_path: Path) -> None:
    yesterday = datetime.date.today() - datetime.timedelta(days=1)
    (waiver,) = read(TABLE.replace("2999-01-01", yesterday.isoformat()), tmp_path)
    assert waiver.expired
    assert waivers.read(tmp_path / "none.toml") == ()


def test_a_waiver_may_be_of_one_device(tmp_path: Path) -> None:
    anywhere, cuda = read(TABLE + TABLE + 'device = "cuda"\n', tmp_path)
    assert (anywhere.device, cuda.device) == ("", "cuda")
    with pytest.raises(ValueError, match="waiver 1 has device 'gpu', which is not cpu or cuda"):
        read(TABLE + 'device = "gpu"\n', tmp_path)


CASE = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(lambda case, found: None, read(TABLE, tmp_path))


def found(*verdicts: str) -> list[Measurement]:
    return [Measurement("memory", "peak", 1.0, "B", verdict, "measured") for verdict in verdicts]


def needed(recorder: Recorder, every: Sequence[Case] = (CASE,), ran: Collection[str] = (CASE.id,)) -> bool:
    return recorder.needed(recorder.waivers[0], every, ran)


@pytest.mark.parametrize(
    ("verdict", "still"), [("fail", True), ("pass", False), ("skipped", True), ("inconclusive", True)]
)
def test_a_waiver_is_needed_as_long_as_what_it_covers_fails(recorder: Recorder, verdict: str, still: bool) -> None:
    (recorded,) = recorder.record(CASE, found(verdict), {})
    assert ("waiver" in recorded.detail) == (verdict == "fail")
    assert needed(recorder) is still


@pytest.mark.parametrize(("verdict", "still"), [("fail", True), ("skipped", False), ("inconclusive", True)])
def test_beside_a_figure_that_passes_one_that_is_undecided_leaves_a_waiver_alone(
    recorder: Recorder, verdict: str, still: bool
) -> None:
    recorder.record(CASE, found("pass", verdict), {})
    assert needed(recorder) is still


@pytest.mark.parametrize(("device", "still"), [("", True), ("cuda", False)])
def test_a_session_on_gpus_holds_only_their_own_waivers_to_account(
    device: str, still: bool, recorder: Recorder
) -> None:
    recorder.device = "cuda"
    recorder.waivers = (replace(recorder.waivers[0], device=device),)
    recorder.record(CASE, found("pass"), {})
    assert needed(recorder) is still


def test_a_session_that_did_not_run_a_case_cannot_tell(recorder: Recorder) -> None:
    recorder.record(CASE, found("pass"), {})
    assert not needed(recorder)
    assert needed(recorder, ran=())


def test_a_waiver_that_matches_no_case_is_not_needed_and_one_of_other_cases_is_left_alone(recorder: Recorder) -> None:
    assert needed(recorder)  # nothing was measured: a session of other measures
    assert not needed(recorder, every=[Case("data_parallel", "ddp", "torch", Topology(dp=2), Workload())])


def test_a_session_of_some_cases_can_tell_of_a_waiver_whose_cases_it_ran(recorder: Recorder) -> None:
    recorder.record(CASE, found("pass"), {})
    assert not needed(recorder, every=[CASE, replace(CASE, engine="torch")])
    assert needed(recorder, every=[CASE, replace(CASE, variant="zero1")])
