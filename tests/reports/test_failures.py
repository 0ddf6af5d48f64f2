"""A report that cannot be made is one line, without a truncated file; odd figures do not prevent a report."""

import math
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest

from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store
from reports import render, tidy, timelines
from reports.render import ReportError, write
from tests.reports import planted

ODD: dict[str, list[float | None]] = {
    "nothing": [None],
    "nan": [math.nan],
    "infinity": [math.inf, -math.inf],
    "zero": [0.0],
    "all": [None, math.nan, math.inf, 0.0],
}

FOUND = Measurement("parity", "gradient", 1.25, "× floor", "pass", "", bound=3.0)
ONE = (Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload()), "cpu", [FOUND])


def odd(value: Any, draw: random.Random, share: float, figures: list[float | None]) -> Any:
    """``value`` with this share of its numbers replaced."""
    if isinstance(value, dict):
        return {name: odd(item, draw, share, figures) for name, item in value.items()}
    if isinstance(value, list):
        return [odd(item, draw, share, figures) for item in value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return draw.choice(figures) if number and draw.random() < share else value


@pytest.mark.parametrize("share", [0.05, 1.0], ids=["some", "every"])
@pytest.mark.parametrize("figures", ODD.values(), ids=ODD)
def test_figures_that_are_missing_or_no_number_leave_the_report_whole(
    figures: list[float | None], share: float
) -> None:
    draw = random.Random(0)
    records = [record for record in planted.records() if draw.random() < 0.2 or record["measure"] == "card"]
    for record in records:
        record |= {name: odd(record[name], draw, share, figures) for name in ("value", "law", "bound", "detail")}
    html = render.render(records, planted.run())
    assert all(f"<code>{record['case']}</code>" in html for record in records if record["case"])


@pytest.mark.parametrize("spans", [[], [[], []], [[["F", 0, 0, 0.0, 0.0]]]], ids=["no rank", "no action", "no time"])
def test_a_timeline_without_time_is_not_drawn(spans: list[Any]) -> None:
    base = planted._base("zero", "zero1", "torch", "dp2", "fp32", "cpu")
    found = planted.measurement("timeline", "bubble", None, "", "error", detail={"measured": spans, "ideal": spans})
    (topic,) = tidy.view([base | found], planted.run(), {}).topics
    assert timelines.timelines(topic) == []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path / "some.sqlite"))
    store.add(store.begin({}, "pytest suites/"), *ONE)
    return store


def refusal(store: Store, folder: Path, run: str | None = None) -> str:
    """The one-line message of a report that cannot be made."""
    with pytest.raises(ReportError) as refused:
        write(store, run, folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_folder_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for folder in (in_the_way, in_the_way / "site", Path("/proc/site"), tmp_path / ("x" * 300)):
        assert refusal(store, folder).startswith(f"cannot write {folder}/index.html: ")
    taken = tmp_path / "taken"
    taken.joinpath("index.html").mkdir(parents=True)
    assert "Is a directory" in refusal(store, taken)
    assert [path.name for path in taken.iterdir()] == ["index.html"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may exceed 4 KiB: a longer one fails midway, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_without_room_leaves_the_former_report_and_no_cut_file(
    store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "site"
    former = write(store, None, folder).read_bytes()
    beside = sorted(path.name for path in folder.rglob("*"))
    assert len(former) > 4096
    store.add(store.begin({}, "pytest suites/"), *ONE)
    request.getfixturevalue("small_files")
    assert refusal(store, folder).startswith(f"cannot write {folder}/index.html: File too large; free some")
    assert folder.joinpath("index.html").read_bytes() == former
    assert sorted(path.name for path in folder.rglob("*")) == beside


def test_a_fault_in_a_template_is_one_line_that_says_where(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    templates.joinpath("page.html").write_text("one\n{{ nobody.knows }}")
    own = jinja2.ChoiceLoader([jinja2.FileSystemLoader(templates), jinja2.PackageLoader("reports")])
    monkeypatch.setattr(render, "PackageLoader", lambda package: own)
    line = refusal(store, tmp_path / "site")
    assert "could not be shown: UndefinedError: 'nobody' is undefined" in line
    assert "(page.html, line 2)" in line
    assert not (tmp_path / "site").exists()


def test_a_store_that_cannot_be_read_is_one_line(store: Store, tmp_path: Path) -> None:
    assert "has no run 'other'" in refusal(store, tmp_path / "site", "other")
    (tmp_path / "some.sqlite").write_bytes(b"no database" * 1000)
    for beside in tmp_path.glob("some.sqlite-*"):
        beside.unlink()
    assert "not a database" in refusal(store, tmp_path / "site")
