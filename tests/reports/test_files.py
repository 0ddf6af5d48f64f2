"""The report in several files: a small first screen, each section beside it, and never a mixture of two reports."""

import json
import os
import re
from html import unescape
from pathlib import Path

import pytest

from harness import cli, findings
from harness.session import finding_records
from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store
from reports import folder, pages
from reports.render import Report, render, report, write
from tests.reports import planted
from tests.reports.test_bottlenecks import profiled
from tests.reports.test_page import Live
from tests.reports.test_render import HOSTILE, Page
from tests.sessions import SKIPPED, run

TOPICS = 45  # about as many as there are
MOST = 1_000_000  # bytes of the first screen


def whole() -> list[planted.Record]:
    """Records of about 2,000 cases in 45 topics, with all findings."""
    records = [record for record in planted.records() if record["measure"] != "finding"]
    out = [record | {"topic": f"{record['topic']}_{n}"} for n in range(TOPICS // 5) for record in records]
    _, known = finding_records(findings.read())
    return out + [planted.finding(found.quantity, dict(found.detail)) for found in known]


@pytest.fixture(scope="module")
def split() -> Report:
    return report([*planted.records(), profiled("torch")], planted.run())


def content(script: str) -> tuple[str, str]:
    """The name and the HTML in a section's script."""
    call = re.fullmatch(r'plumbline\((".*?"), (".*")\);\n', script, re.S)
    assert call
    return json.loads(call[1]), json.loads(call[2])


def test_the_first_screen_of_a_whole_run_is_under_a_megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "figures", lambda *_: [])  # they are in the sections' files, and slow to draw
    made = report(whole(), planted.run())
    assert len(made.index.encode()) < MOST
    assert sum(map(len, made.files.values())) > 2 * MOST
    assert Live(made.index).count < 15_000


def test_the_files_together_hold_what_the_single_file_holds(split: Report) -> None:
    bodies = dict(content(text) for name, text in split.files.items() if name.endswith(".js"))

    def folded(part: re.Match[str]) -> str:
        return f'<details class="part"><summary>{part[2]}</summary><template>{bodies.pop(part[1])}</template></details>'

    apart = r'<details class="part" data-part="(\w+)"><summary>(.*?)</summary><p class="apart">.*?</p></details>'
    joined = re.sub(apart, folded, split.index)
    assert not bodies
    notice = "<noscript>.*?</noscript>"
    whole = render([*planted.records(), profiled("torch")], planted.run())
    assert re.sub(notice, "", joined, flags=re.S) == re.sub(notice, "", whole, flags=re.S)


def test_every_link_to_a_section_leads_to_its_page(split: Report) -> None:
    links = re.findall(r'href="(sections-[^"]+)"', split.index)
    assert len(links) == len(planted.TOPICS) + 1
    assert {f"{split.beside}/{name}" for name in split.files if name.endswith(".html")} == set(links)
    assert all(link.replace(".html", ".js").split("/")[1] in split.files for link in links)


def test_a_section_s_page_needs_no_script_and_leads_back_to_the_report(split: Report) -> None:
    for name, text in split.files.items():
        if name.endswith(".html"):
            page = Page(text)
            assert page.open == []
            assert not {"template", "script"} & set(page.tags)
            ids = {f"#{value}" for _, key, value in page.attributes if key == "id"}
            links = {value for tag, key, value in page.attributes if (tag, key) == ("a", "href")}
            inner = {link.removeprefix("../index.html") for link in links if not link.startswith("https://github.com/")}
            assert all(link.startswith("#") for link in inner)
            assert not inner & ids
            assert all(f'id="{link[1:]}"' in split.index for link in inner)
    assert "style.css" in split.files
    page = split.files["zero.html"]
    assert "zero1-megatron-dp2-fp32" in page
    assert "2310 × the noise floor" in page


def test_a_hostile_name_is_no_path_and_no_code() -> None:
    records = planted.records()
    for record in records:
        record["topic"] = record["topic"] and f"../{record['topic']}{HOSTILE}"
    made = report(records, planted.run() | {"run": f"../{HOSTILE}"})
    assert folder.OURS.fullmatch(made.beside)
    assert len(made.files) == 2 * len(planted.TOPICS) + 1
    for name, text in made.files.items():
        assert re.fullmatch(r"[\w-]+\.(js|html|css)", name)
        if name.endswith(".js"):
            assert content(text)[0] == name.removesuffix(".js")
    assert Page(made.index).tags.count("script") == 1


def test_two_topics_never_share_a_file() -> None:
    records = [record for record in planted.records() if record["topic"] in ("zero", "preference")]
    for record in records:
        record["topic"] = {"zero": "a.b", "preference": "a b"}[record["topic"]]
    made = report(records, planted.run())
    assert {"a_b.js", "a_b_.js"} <= set(made.files)


CASE = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs that differ in one figure."""
    store = Store.open(str(tmp_path / "some.sqlite"))
    for value in (1.25, 1.75):
        found = Measurement("parity", "gradient", value, "× floor", "pass", "", bound=3.0)
        store.add(store.begin({}, "pytest suites/"), CASE, "cpu", [found])
    return store


def runs(store: Store) -> list[str]:
    return sorted((entry["run"] for entry in store.runs()), key=lambda run: store.records(run)[0]["value"])


def beside(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir())


def shown(place: Path) -> str:
    """The section that the index loads."""
    (link,) = re.findall(r'href="(sections-[^"]+)"', (place / "index.html").read_text(encoding="utf-8"))
    return (place / unescape(link)).read_text(encoding="utf-8")


def test_another_run_replaces_the_sections_and_leaves_other_files(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "site"
    first, second = runs(store)
    write(store, first, place)
    (former,) = beside(place)
    assert first in former.name
    (place / "notes").mkdir()
    (place / "notes" / "mine.html").write_text("mine")
    (place / "sections-of-mine").mkdir()
    write(store, second, place)
    assert not former.exists()
    (new, *others) = sorted(beside(place), key=lambda path: second not in path.name)
    assert sorted(path.name for path in others) == ["notes", "sections-of-mine"]
    assert (place / "notes" / "mine.html").exists()
    assert "1.75×" in shown(place)
    assert sorted(path.name for path in new.iterdir()) == ["style.css", "zero.html", "zero.js"]


def test_a_file_of_somebody_else_keeps_its_folder(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "site"
    first, second = runs(store)
    write(store, first, place)
    (former,) = beside(place)
    (former / "mine.txt").write_text("mine")
    write(store, second, place)
    assert [path.name for path in former.iterdir()] == ["mine.txt"]


def test_the_same_report_again_changes_nothing_and_mends_what_is_missing(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "site"
    write(store, None, place)
    files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    changed = sorted(files)[-1]
    changed.write_bytes(b"cut")
    sorted(files)[-2].unlink()
    write(store, None, place)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == files


def test_a_single_file_leaves_no_sections(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "site"
    write(store, None, place)
    page = write(store, None, place, single_file=True)
    assert [path.name for path in place.iterdir()] == ["index.html"]
    assert "1.75×" in page.read_text(encoding="utf-8")
    assert "sections-" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("stop", range(4), ids="after {} files".format)
def test_until_the_last_file_is_written_the_former_report_is_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Interrupted by anything: the process just ends."""
    place = tmp_path / "site"
    first, second = runs(store)
    write(store, first, place)
    before = (place / "index.html").read_bytes(), shown(place)
    put, done = folder._put, []

    def killed(path: Path, content: bytes) -> None:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(path)
        put(path, content)

    monkeypatch.setattr(folder, "_put", killed)
    with pytest.raises(KeyboardInterrupt):
        write(store, second, place)
    assert ((place / "index.html").read_bytes(), shown(place)) == before
    monkeypatch.setattr(folder, "_put", put)
    write(store, second, place)
    assert "1.75×" in shown(place)
    assert len(beside(place)) == 1


def test_sections_that_another_process_is_writing_are_left(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "site"
    first, second = runs(store)
    written = write(store, first, place).stat().st_mtime
    other = place / "sections-other-0123456789ab"
    other.mkdir()
    os.utime(other, (written + 5, written + 5))
    write(store, second, place)
    assert other in beside(place)


def test_the_command_writes_files_or_one_file(store: Store, tmp_path: Path) -> None:
    words = ["report", "--store", str(tmp_path / "some.sqlite"), "--report", str(tmp_path / "site")]
    assert cli.main(words) == 0
    assert len(beside(tmp_path / "site")) == 1
    assert cli.main([*words, "--single-file"]) == 0
    assert beside(tmp_path / "site") == []


def test_a_session_writes_one_file_if_asked(user: pytest.Pytester) -> None:
    assert run(user, *SKIPPED, "--single-file").ret == pytest.ExitCode.OK
    assert [path.name for path in user.path.joinpath("report").iterdir()] == ["index.html"]


def test_plumbline_run_hands_flags_and_zeros_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(pytest, "main", lambda arguments: given.extend(arguments) or 0)
    assert cli.main(["run", "zero", "--gpus", "0", "--single-file"]) == 0
    assert given[1:] == ["--gpus=0", "--topics=zero", "--single-file"]
