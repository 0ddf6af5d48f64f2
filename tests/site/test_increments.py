"""What a second publish writes, and what it never touches."""

import json
import os
from pathlib import Path

import pytest

from harness.history import Alarm, Series
from harness.store import Store
from reports import render
from reports.site import SiteError, folder, publish
from tests.site import synthetic
from tests.site.conftest import SOME


def files(site: Path) -> dict[str, bytes]:
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}


def test_a_second_publish_of_the_same_store_writes_nothing(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "site")
    before = files(tmp_path / "site")
    assert publish(store, tmp_path / "site").written == ()
    assert files(tmp_path / "site") == before


def test_one_more_run_makes_its_own_pages_those_of_its_cases_and_the_lists(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "site")
    run = synthetic.night(store, 9, SOME[:1], synthetic.environment(torch="2.14.1"))
    written = set(publish(store, tmp_path / "site").written)
    assert {name for name in written if name.startswith("cases/")} == {f"cases/{SOME[0].id}.html", "cases/index.html"}
    runs = {name for name in written if name.startswith("runs/") and name != "runs/index.html"}
    assert all(name.startswith(f"runs/{run}/") for name in runs)
    assert {"index.html", "runs/index.html", f"runs/{run}/report/index.html"} <= written


def test_the_index_shows_a_new_run_before_the_pages_of_its_cases_are_made(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish(store, site)
    run = synthetic.night(store, 9, SOME[:1], synthetic.environment(torch="2.14.1"))

    def late(_: Store) -> tuple[list[Alarm], str]:
        assert run in (site / "index.html").read_text()
        assert run not in (site / "cases" / f"{SOME[0].id}.html").read_text()
        return [], ""

    publish(store, site, seek=late)
    assert run in (site / "cases" / f"{SOME[0].id}.html").read_text()


def test_a_newer_pytorch_marks_the_rows_that_were_not_measured_again(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "site")
    synthetic.night(store, 9, SOME[:1], synthetic.environment(torch="2.15.0"))
    publish(store, tmp_path / "site")
    page = (tmp_path / "site" / "cases" / f"{SOME[1].id}.html").read_text()
    assert "not measured again under PyTorch 2.15.0" in page


def test_the_manifest_lists_every_file_with_its_digest(store: Store, tmp_path: Path) -> None:
    import hashlib

    site = tmp_path / "site"
    publish(store, site)
    listed = json.loads((site / folder.MANIFEST).read_text())["files"]
    found = files(site)
    assert found.keys() - {folder.MANIFEST} == listed.keys()
    for name, entry in listed.items():
        assert hashlib.sha256(found[name]).hexdigest() == entry["sha256"]
        assert entry["made"]


def test_foreign_files_stay_and_are_never_overwritten(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "CNAME").write_text("example.org")
    publish(store, site)
    assert (site / "CNAME").read_text() == "example.org"
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    with pytest.raises(SiteError, match=r"index\.html: plumbline did not write this file"):
        publish(store, other)
    assert (other / "index.html").read_text() == "mine"


def test_a_page_that_is_no_longer_made_is_removed_unless_somebody_changed_it(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish(store, site, scripts={"planted_average": "print()\n"})
    (site / "findings" / "planted_average.py").write_text("mine")
    assert publish(store, site).left == ("findings/planted_average.py",)
    assert (site / "findings" / "planted_average.py").read_text() == "mine"
    publish(store, tmp_path / "again", scripts={"planted_average": "print()\n"})
    publish(store, tmp_path / "again")
    assert not (tmp_path / "again" / "findings" / "planted_average.py").exists()


def test_another_store_does_not_empty_the_site_unless_that_is_asked_for(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish(store, site)
    before = files(site)
    other = Store.open(str(tmp_path / "other.db"))
    with pytest.raises(SiteError, match="4 runs that store"):
        publish(other, site)
    assert files(site) == before
    publish(other, site, prune=True)
    assert not list((site / "runs").glob("2*"))
    assert not list((site / "cases").glob("zero*"))


def test_a_manifest_that_names_a_file_outside_removes_nothing(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish(store, site)
    (tmp_path / "precious").write_text("mine")
    stored = json.loads((site / folder.MANIFEST).read_text())
    stored["files"]["../precious"] = {"made": "x", "sha256": "", "size": 4, "facts": {}}
    (site / folder.MANIFEST).write_text(json.dumps(stored))
    with pytest.raises(SiteError, match="no file of the site"):
        publish(store, site)
    assert (tmp_path / "precious").exists()


def test_a_foreign_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / folder.MANIFEST).write_text('{"name": "somebody else\'s"}')
    with pytest.raises(SiteError, match="not the manifest"):
        publish(store, site)
    assert list(site.iterdir()) == [site / folder.MANIFEST]


def test_a_killed_publish_leaves_whole_pages_and_is_completed_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, stop = tmp_path / "site", RuntimeError("killed")
    replace = Path.replace
    left = 7

    def killed(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise stop
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(RuntimeError):
            publish(store, site)
    assert not (site / "index.html").exists()
    publish(store, site)
    fresh = tmp_path / "fresh"
    publish(store, fresh)
    assert files(site) == files(fresh)


def test_a_damaged_page_is_made_again(store: Store, tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish(store, site)
    whole = files(site)
    (site / "cases" / f"{SOME[0].id}.html").write_text("half")
    (site / "runs" / synthetic.run_id(0) / "report" / "index.html").unlink()
    (site / "alarms.json").write_text("{")
    publish(store, site)
    assert files(site) == whole


def test_only_one_process_at_a_time_writes_to_a_site(store: Store, tmp_path: Path) -> None:
    with folder.Folder.open(tmp_path / "site"), pytest.raises(SiteError, match="another plumbline publish"):
        publish(store, tmp_path / "site")


def test_a_store_without_runs_gives_a_site_that_says_so(tmp_path: Path) -> None:
    publish(Store.open(str(tmp_path / "empty.db")), tmp_path / "site")
    assert "The store has no run yet" in (tmp_path / "site" / "index.html").read_text()


def test_a_run_without_records_has_a_page_and_no_report(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "a.db"))
    run = synthetic.night(store, 0, [], {}, quantities=0)
    publish(store, tmp_path / "site")
    assert "No report" in (tmp_path / "site" / "runs" / run / "index.html").read_text()


def test_a_report_that_cannot_be_made_is_a_note_and_not_the_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Path:
        raise render.ReportError(f"run {synthetic.run_id(0)} could not be shown")

    monkeypatch.setattr(render, "write", broken)
    done = publish(store, tmp_path / "site")
    assert len(done.notes) == 4
    assert "could not be shown" in (tmp_path / "site" / "runs" / synthetic.run_id(0) / "index.html").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SiteError, match="cannot write"):
        publish(store, tmp_path / "site")


def test_a_file_in_the_place_of_the_folder_is_one_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "site").write_text("a file")
    with pytest.raises(SiteError, match="cannot write"):
        publish(store, tmp_path / "site")


def test_alarms_are_sought_once_for_the_same_records(store: Store, tmp_path: Path) -> None:
    series = Series(SOME[0].id, "throughput", "step_time", "s", "lower", "machine")
    alarm = Alarm(series, synthetic.run_id(3), 0.01, 0.012, False, 1e-5, {"torch": ("2.13.0", "2.14.1")})
    calls = []

    def sought(_: Store) -> tuple[list[Alarm], str]:
        calls.append(1)
        return [alarm], ""

    publish(store, tmp_path / "site", seek=sought)
    page = tmp_path / "site" / "cases" / f"{SOME[0].id}.html"
    first = page.read_text()
    publish(store, tmp_path / "site", seek=sought)
    assert len(calls) == 1
    assert page.read_text() == first
    assert 'class="change"' in first
    assert f"Changed for the worse since run {synthetic.run_id(3)}" in first
    assert "changed for the worse" in (tmp_path / "site" / "feed.xml").read_text()


def test_a_missing_detector_is_said_on_the_page_until_there_is_one(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "site", seek=lambda _: ([], "Change points were not sought: no detector"))
    pages = [tmp_path / "site" / name for name in ("index.html", f"cases/{SOME[0].id}.html")]
    for page in pages:
        assert "Change points were not sought: no detector" in page.read_text()
    publish(store, tmp_path / "site", seek=lambda _: ([], ""))
    for page in pages:
        assert "Change points were not sought" not in page.read_text()
