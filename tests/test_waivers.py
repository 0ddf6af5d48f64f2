"""Waivers: data that is read strictly and held to account."""

import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from harness import catalog, waivers
from harness.lab import Lab
from harness.launch.local import LocalLauncher
from harness.spec import Case, Finding, Topology, Workload

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
    peak = Finding("memory", "peak", 1.0, "B", "fail", "too much")
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
    with pytest.raises(ValueError, match="waiver 1 is of device 'gpu', which is not cpu or cuda"):
        read(TABLE + 'device = "gpu"\n', tmp_path)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    case = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())
    recorded: list[Finding] = []
    lab = Lab(
        catalog.topics(),
        [case],
        LocalLauncher(),
        lambda _, found: recorded.extend(found),
        read(TABLE, tmp_path),
    )
    lab.close()
    return lab


@pytest.mark.parametrize(
    ("verdict", "needed"), [("fail", True), ("pass", False), ("skipped", True), ("inconclusive", True)]
)
def test_a_waiver_is_needed_as_long_as_what_it_covers_fails(lab: Lab, verdict: str, needed: bool) -> None:
    case = lab.cases[0]
    (found,) = lab._conclude(case, [Finding("memory", "peak", 1.0, "B", verdict, "measured")])
    assert ("waiver" in found.detail) == (verdict == "fail")
    assert lab.needed(lab.waivers[0]) is needed


@pytest.mark.parametrize(("verdict", "needed"), [("fail", True), ("skipped", False), ("inconclusive", True)])
def test_beside_a_figure_that_passes_one_that_is_undecided_leaves_a_waiver_alone(
    lab: Lab, verdict: str, needed: bool
) -> None:
    lab._conclude(lab.cases[0], [Finding("memory", "peak", 1.0, "B", v, "measured") for v in ("pass", verdict)])
    assert lab.needed(lab.waivers[0]) is needed


@pytest.mark.parametrize(("device", "needed"), [("", True), ("cuda", False)])
def test_a_session_on_gpus_holds_only_their_own_waivers_to_account(device: str, needed: bool, lab: Lab) -> None:
    lab.launcher.device = "cuda"
    lab.waivers = [replace(lab.waivers[0], device=device)]
    lab._conclude(lab.cases[0], [Finding("memory", "peak", 1.0, "B", "pass", "measured")])
    assert lab.needed(lab.waivers[0]) is needed


def test_a_session_with_too_few_ranks_for_a_case_cannot_tell(lab: Lab) -> None:
    lab._conclude(lab.cases[0], [Finding("memory", "peak", 1.0, "B", "pass", "measured")])
    assert not lab.needed(lab.waivers[0])
    lab.capacity = 1
    assert lab.needed(lab.waivers[0])


def test_a_waiver_that_matches_no_case_is_not_needed_and_one_of_other_cases_is_left_alone(lab: Lab) -> None:
    assert lab.needed(lab.waivers[0])  # nothing was measured: a session of other measures
    lab.universe = [Case("data_parallel", "ddp", "torch", Topology(dp=2), Workload())]
    assert not lab.needed(lab.waivers[0])


def test_a_session_of_some_cases_can_tell_of_a_waiver_whose_cases_it_ran(lab: Lab) -> None:
    (case,) = lab.cases
    lab._conclude(case, [Finding("memory", "peak", 1.0, "B", "pass", "measured")])
    lab.universe = [case, replace(case, engine="torch")]
    assert not lab.needed(lab.waivers[0])
    lab.universe = [case, replace(case, variant="zero1")]
    assert lab.needed(lab.waivers[0])
