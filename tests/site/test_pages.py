"""The pages of a published site."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag

import pytest

from harness.store import Store
from reports.site import case, publish
from tests.site import synthetic
from tests.site.conftest import SOME, WRONG

ALONE = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}


class Page(HTMLParser):
    """The tags of a page: addresses with the attributes of their tag, ids, and tags that were left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def found(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def addresses(self) -> list[tuple[str, dict[str, str]]]:
        return [(a[name], a) for _, a in self.tags for name in ("href", "src") if name in a]


def own(site: Path) -> list[Path]:
    """The site's own pages: the reports are tested elsewhere."""
    return [path for path in sorted(site.rglob("*.html")) if "report" not in path.relative_to(site).parts]


def test_every_link_leads_to_a_file_and_every_anchor_to_an_id(site: Path) -> None:
    for path in own(site):
        for address, attributes in Page(path.read_text()).addresses:
            if attributes.get("class") == "external":
                continue
            place, anchor = urldefrag(address)
            target = (path.parent / place).resolve() if place else path
            assert target.is_file(), f"{path.name}: {address}"
            assert target.is_relative_to(site.resolve())
            if anchor:
                assert anchor in {a.get("id") for _, a in Page(target.read_text()).tags}


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    external = 0
    for path in own(site):
        text = path.read_text()
        for address, attributes in Page(text).addresses:
            if re.match(r"(?:[a-z]+:)?//", address):
                assert attributes.get("class") == "external"
                external += 1
        assert "@import" not in text
        assert [a.keys() for a in Page(text).found("script")] == [{"src", "defer"}]
    assert external == 1  # the public issue
    assert "url(" not in (site / "assets" / "site.css").read_text()


def test_every_page_is_well_formed_with_one_heading_landmarks_and_scoped_headers(site: Path) -> None:
    for path in own(site):
        page = Page(path.read_text())
        assert (page.wrong, page.open) == ([], []), path
        assert [len(page.found(tag)) for tag in ("h1", "main", "nav", "title")][:3] == [1, 1, 1], path
        assert all(header.get("scope") for header in page.found("th")), path
        assert all(image.get("alt") for image in page.found("img"))
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids)), path
        labels = [a["aria-label"] for a in page.found("div") if a.get("role") == "region"]
        assert len(labels) == len(set(labels)), path


def test_a_table_scrolls_by_itself(site: Path) -> None:
    for path in own(site):
        text = path.read_text()
        inside = re.sub(r'<div class="scroll".*?</div>', "", text, flags=re.S)
        inside = re.sub(r"<details>.*?</details>", "", inside, flags=re.S)  # values of a chart: three narrow columns
        assert "<table" not in inside, path


def test_a_case_page_has_its_history_samples_environment_and_command(site: Path) -> None:
    text = (site / "cases" / f"{SOME[0].id}.html").read_text()
    assert text.count('<figure class="history">') == len(synthetic.QUANTITIES)
    assert "pytest suites/ --topics zero -k=" in text
    assert "12.3" in text  # a sample of 12.3 ms
    assert "Planted CPU" in text
    assert "Another CPU" in text
    assert "torch 2.13.0 → 2.14.1" in text
    assert "/home/me" not in text


def test_runs_of_different_hardware_are_different_lines(site: Path) -> None:
    text = (site / "cases" / f"{SOME[0].id}.html").read_text()
    chart = text.partition("<figure")[2].partition("</svg>")[0]
    assert chart.count('class="line"') == 2
    assert chart.count("<circle") == 4


def test_a_case_that_was_not_measured_under_the_newest_pytorch_says_so(site: Path) -> None:
    said = "not measured again under PyTorch 2.14.1"
    assert said in (site / "cases" / f"{SOME[3].id}.html").read_text()
    assert said not in (site / "cases" / f"{SOME[0].id}.html").read_text()


def test_noise_from_night_to_night_is_that_of_the_same_software_on_the_same_machine(site: Path, store: Store) -> None:
    text = (site / "cases" / f"{SOME[0].id}.html").read_text()
    assert "equal in 1 pair" in text  # of the figures with a bound; nights 0 and 1 alone are alike


def test_a_finding_page_says_who_is_hurt_since_when_with_script_and_issue(site: Path) -> None:
    text = (site / "findings" / "planted_average.html").read_text()
    assert "Gradients are &lt;averaged&gt; twice" in text
    assert "Training goes on with half" in text
    assert "0.19.3" in text
    assert "print(&#39;still there&#39;)  # &lt;b&gt;" in text
    assert 'href="https://github.com/owner/name/issues/12"' in text
    assert f"cases/{WRONG}.html" in text
    assert synthetic.run_id(3) in text
    assert "right until 0.19.2" in text
    assert (site / "findings" / "planted_average.py").read_text().startswith("print")


def test_the_table_of_releases_and_the_claims_are_shown(site: Path) -> None:
    text = (site / "versions.html").read_text()
    assert "does not import" in text
    assert "right until 0.19.2, wrong from 0.19.8" in text
    assert "half the memory" in (site / "claims.html").read_text()


def test_raw_records_of_each_run_lie_beside_it(site: Path, store: Store) -> None:
    import pandas

    for night in range(4):
        run = synthetic.run_id(night)
        records = store.records(run)
        table = pandas.read_parquet(site / "runs" / run / "records.parquet")
        assert list(table["value"].dropna()) == [r["value"] for r in records if r["value"] is not None]
        assert len(pandas.read_csv(site / "runs" / run / "records.csv")) == len(records)
        assert json.loads((site / "runs" / run / "run.json").read_text())["run"] == run
        assert (site / "runs" / run / "report" / "index.html").is_file()


def test_badges_say_in_words_what_failed(site: Path) -> None:
    badge = (site / "badges" / "zero-deepspeed.svg").read_text()
    assert "zero deepspeed: 1 of 6 fail" in badge
    assert "1 wrong result, 0 others" in (site / "badges" / "findings.svg").read_text()


def test_a_page_stays_small_with_a_long_history_and_many_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.site.build._exported", lambda table, format, path: path.touch())
    store = Store.open(str(tmp_path / "long.db"))
    some = synthetic.cases(1)
    for night in range(122):
        synthetic.night(store, night, some, synthetic.environment(), quantities=30)
    publish(store, tmp_path / "site")
    page = tmp_path / "site" / "cases" / f"{some[0].id}.html"
    assert page.stat().st_size <= case.LIMIT
    assert "older runs are not drawn" in page.read_text()


@pytest.mark.parametrize("name", ["INDEX", "index", "Größe/../x", "a" * 300, "nul\\con"])
def test_a_name_of_a_foreign_store_becomes_a_safe_file_name(name: str) -> None:
    from reports.site.names import case_page

    assert re.fullmatch(r"cases/[a-z0-9_-]{1,110}\.html", case_page(name))
    assert case_page(name) not in ("cases/index.html", case_page(f"{name}2"))


@pytest.mark.usefixtures("real_report")
def test_the_report_of_a_run_lies_beside_its_page_as_it_is(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "a.db"))
    run = synthetic.night(store, 0, SOME, synthetic.environment())
    publish(store, tmp_path / "site")
    assert "<h1>" in (tmp_path / "site" / "runs" / run / "report" / "index.html").read_text()
    assert 'href="report/index.html"' in (tmp_path / "site" / "runs" / run / "index.html").read_text()
