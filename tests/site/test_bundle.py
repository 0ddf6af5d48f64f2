"""Bundles of a run, and their check by others."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import USAGE, main
from harness.store import Store
from harness.submission import BundleError, again, bundle, confirm, inconsistent, make, read
from tests.site import synthetic
from tests.site.conftest import SOME

RUN = synthetic.run_id(1)


@pytest.fixture
def path(store: Store, tmp_path: Path) -> Path:
    make(store, RUN, tmp_path / "run.zip")
    return tmp_path / "run.zip"


def changed(path: Path, part: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of the bundle with another part."""
    target = path.with_name(f"{path.stem}-changed.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name == part else old.read(name))
    return target


def test_a_bundle_holds_the_records_environment_command_commit_and_versions(path: Path, store: Store) -> None:
    found = read(path)
    assert list(found.records) == store.records(RUN)
    assert found.run["command"].startswith("pytest suites/")
    assert found.run["commit"] == "c0ffee"
    assert found.run["packages"]["torch"] == "2.13.0"
    assert found.run["hardware"] == "2 x Planted CPU, 16 GiB"


def test_the_same_run_gives_the_same_bytes(path: Path, store: Store, tmp_path: Path) -> None:
    make(store, RUN, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_a_bundle_has_no_secret_that_an_older_plumbline_stored(store: Store, tmp_path: Path) -> None:
    secret = f"pytest suites/ --store postgresql://me:hunter2@host/db {Path.home()}/x"
    run = synthetic.night(store, 5, SOME[:1], synthetic.environment(note="password=hunter2"), command=secret)
    make(store, run, tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        text = archive.read(bundle.RUN).decode()
    assert "hunter2" not in text
    assert f"{Path.home()}/" not in text


@pytest.mark.parametrize("part", [bundle.RUN, bundle.RECORDS])
def test_a_bundle_that_was_changed_is_refused(path: Path, part: str) -> None:
    with pytest.raises(BundleError, match="changed after it was made"):
        read(changed(path, part, lambda content: content.replace(b"2.13.0", b"2.13.1") + b" "))


def test_a_bundle_whose_sums_are_changed_too_has_another_digest(path: Path) -> None:
    import hashlib

    digest = read(path).digest
    other = changed(path, bundle.RUN, lambda content: content.replace(b"2.13.0", b"2.13.1"))
    with zipfile.ZipFile(other) as archive:
        new = hashlib.sha256(archive.read(bundle.RUN)).hexdigest()
        old = archive.read(bundle.SUMS).decode().split("  ")[0]
    forged = changed(other, bundle.SUMS, lambda content: content.replace(old.encode(), new.encode()))
    assert read(forged).digest != digest
    assert main(["verify", str(forged), "--dry", "--sha256", digest]) == USAGE


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_bundle_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(BundleError, match="no bundle of plumbline submit"):
        read(tmp_path / "a.zip")


def test_a_bundle_with_another_part_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(BundleError, match="it holds"):
        read(path)


def test_an_honest_bundle_is_confirmed(path: Path, store: Store) -> None:
    found = read(path)
    outcomes = confirm(found.records, store.records(synthetic.run_id(0)), same_hardware=True)
    assert {outcome.state for outcome in outcomes} == {"confirmed"}
    assert len(outcomes) == len(SOME) * len(synthetic.QUANTITIES)


def forged(records: Any, measure: str, quantity: str, **changes: Any) -> list[dict[str, Any]]:
    return [
        {**r, **changes} if (r["case"], r["measure"], r["quantity"]) == (SOME[0].id, measure, quantity) else dict(r)
        for r in records
    ]


@pytest.mark.parametrize(
    ("measure", "quantity", "changes"),
    [
        ("parity", "gradient", {"verdict": "fail"}),
        ("memory", "states", {"value": 800_000.0}),
        ("memory", "peak", {"value": 1_000_000.0}),
        ("traffic", "bytes", {"value": 302_500.0}),
        ("throughput", "step_time", {"value": 0.006}),
    ],
)
def test_a_changed_figure_is_refuted_and_no_other(
    store: Store, measure: str, quantity: str, changes: dict[str, Any]
) -> None:
    ours = store.records(synthetic.run_id(0))
    theirs = forged(store.records(RUN), measure, quantity, **changes)
    refuted = [one for one in confirm(theirs, ours, same_hardware=True) if one.state == "refuted"]
    assert [(one.case, one.measure, one.quantity) for one in refuted] == [(SOME[0].id, measure, quantity)]


def test_speed_is_not_judged_on_other_hardware(store: Store) -> None:
    ours = store.records(synthetic.run_id(0))
    theirs = forged(store.records(RUN), "throughput", "step_time", value=0.0001)
    outcomes = [one for one in confirm(theirs, ours, same_hardware=False) if one.measure == "throughput"]
    assert {one.state for one in outcomes} == {"could not be judged"}


def test_a_case_that_was_not_run_again_is_neither_confirmed_nor_refuted(store: Store) -> None:
    outcomes = confirm(store.records(RUN), [], same_hardware=True)
    assert {one.state for one in outcomes} == {"could not be judged"}


def test_a_figure_that_passes_above_its_own_bound_refutes_itself(store: Store) -> None:
    records = store.records(RUN)
    assert inconsistent(records) == []
    (found,) = inconsistent(forged(records, "parity", "gradient", value=9.0))
    assert (found.state, found.quantity) == ("refuted", "gradient")


def test_only_names_are_taken_from_the_command(store: Store, tmp_path: Path) -> None:
    command = (
        "pytest suites/ -p evil --add-engine zero:x=evil:build --workload /tmp/evil.toml --depth quick --ranks 2 "
        "--dtypes bf16;rm --store sqlite:////tmp/x.db -k 'a or b'"
    )
    run = synthetic.night(store, 6, SOME[:1], synthetic.environment(), command=command)
    made = make(store, run, tmp_path / "run.zip")
    assert again.arguments(made) == [
        "--topics=zero",
        "--engines=reference",
        "--depth=quick",
        "--ranks=2",
        f"-k=-{SOME[0].id}]",
    ]


def test_the_command_line_makes_checks_and_refuses(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.zip"
    assert main(["submit", RUN, "--store", str(tmp_path / "history.db"), "--output", str(path)]) == 0
    digest = capsys.readouterr().out.splitlines()[-1]
    assert main(["verify", str(path), "--dry", "--sha256", digest, "--json", str(tmp_path / "out.json")]) == 0
    assert "the bundle is whole" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["digest"] == digest
    assert main(["verify", str(changed(path, bundle.RUN, bytes.upper)), "--dry"]) == USAGE
    assert main(["submit", "nothing", "--store", str(tmp_path / "history.db")]) == USAGE


def test_verify_runs_the_cases_again_and_its_status_tells_of_a_refuted_figure(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(store, RUN, tmp_path / "run.zip")

    def run(options: list[str], url: str, report: Path) -> None:
        synthetic.night(Store.open(url), 0, SOME, synthetic.environment(), failing={SOME[0].id: ""})

    monkeypatch.setattr(again, "run", run)
    assert main(["verify", str(tmp_path / "run.zip")]) == 1
    shown = capsys.readouterr().out
    assert "1 refuted" in shown
    assert SOME[0].id in shown


def test_submissions_are_published_with_their_outcome_unless_they_were_changed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "entered"
    folder.mkdir()
    made = make(store, RUN, folder / "good.zip")
    (folder / "bad.zip").write_bytes(changed(folder / "good.zip", bundle.RUN, bytes.upper).read_bytes())
    (folder / "good-changed.zip").unlink()

    def run(options: list[str], url: str, report: Path) -> None:
        synthetic.night(Store.open(url), 0, SOME, synthetic.environment(), failing={SOME[0].id: ""})

    monkeypatch.setattr(again, "run", run)
    assert main(["verify", str(folder / "good.zip"), "--json", str(folder / "good.json")]) == 1
    command = ["publish", str(tmp_path / "site"), "--store", str(tmp_path / "history.db")]
    assert main([*command, "--submissions", str(folder)]) == 0
    assert "not published" in capsys.readouterr().err
    text = (tmp_path / "site" / "submissions.html").read_text()
    assert text.count("<tr>") == 2  # the head and one row
    assert "1 refuted" in text
    assert SOME[0].id in text
    (published,) = (tmp_path / "site" / "submissions").iterdir()
    assert read(published).digest == made.digest
