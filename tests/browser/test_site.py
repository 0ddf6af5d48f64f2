"""The published site in a reader's browser, opened from files: every kind of page, and the history of a case."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import cli
from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store
from tests.browser.checks import (
    THEMES,
    WIDTHS,
    assert_fits,
    assert_keyboard_reaches_everything,
    backgrounds,
)
from tests.browser.conftest import Visit

NIGHTS = (1.25, 1.27, 1.24, 1.26, 2.51, 2.53, 2.49)  # × the noise floor
MACHINE = {"cpu": "one", "cores": 2, "python": "3.11.9", "packages": {"torch": "2.13.0"}}
CASES = [Case("zero", f"zero{stage}", "deepspeed", Topology(dp=2), Workload()) for stage in (1, 2, 3)]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A week of nights of three cases."""
    if "publish" not in cli.COMMANDS:
        pytest.skip("plumbline publish does not exist")
    place = tmp_path_factory.mktemp("site")
    url = str(place / "some.sqlite")
    store = Store.open(url)
    for value in NIGHTS:
        run = store.begin(MACHINE, "pytest suites/ --ranks 2")
        for case in CASES:
            found = Measurement("parity", "gradient", value, "× floor", "pass", "", bound=3.0)
            timed = Measurement(
                "throughput", "step_time", value / 100, "s", "pass", "", detail={"samples": [value] * 5}
            )
            store.add(run, case, "cpu", [found, timed])
        store.finish(run, "finished")
    assert cli.main(["publish", str(place / "public"), "--store", url]) == 0
    return place / "public"


def kinds(site: Path) -> Iterator[Path]:
    """One page of each folder, and the index."""
    yield site / "index.html"
    folders = sorted({path.parent for path in site.rglob("*.html")} - {site})
    seen = set()
    for folder in folders:
        if folder.parent not in seen:  # of folders in one folder, the first
            seen.add(folder.parent)
            yield sorted(folder.glob("*.html"))[0]


def history(site: Path) -> Path:
    """The page of a case: it names the case and draws its figures."""
    pages = [page for page in site.rglob("*.html") if "zero1-deepspeed-dp2" in page.stem]
    if not pages:
        pages = [page for page in site.rglob("*.html") if "zero1-deepspeed-dp2" in str(page.parent)]
    return pages[0]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_window_and_axe_finds_nothing_serious(
    visit: Visit, site: Path, width: int, theme: str, violations: Callable[..., list[str]]
) -> None:
    papers = set()
    for page in (*kinds(site), history(site)):
        tab = visit(page, width, theme)
        tab.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        tab.wait_for_timeout(50)
        assert_fits(tab)
        assert violations(tab) == [], page
        papers.add(backgrounds(tab))
    assert len(papers) == 1


def test_every_page_is_used_by_the_keyboard_alone(visit: Visit, site: Path) -> None:
    for page in (*kinds(site), history(site)):
        assert_keyboard_reaches_everything(visit(page))


def test_the_reader_comes_from_the_index_to_a_case_by_links(visit: Visit, site: Path) -> None:
    tab = visit(site / "index.html")
    links = tab.eval_on_selector_all("a[href]", "all => all.map(link => link.href.split('#')[0])")
    local = {link for link in links if link.startswith("file:")}
    assert local
    for link in local:
        assert Path(link.removeprefix("file://")).exists(), link


@pytest.mark.parametrize("javascript", [True, False])
def test_a_history_chart_is_read_by_those_who_do_not_see_it(visit: Visit, site: Path, javascript: bool) -> None:
    tab = visit(history(site), javascript=javascript)
    charts = tab.locator("svg[role=img]")
    assert charts.count() >= 2
    for chart in charts.all():
        assert chart.get_attribute("aria-label")
    while (folds := tab.locator("details:not([open]) > summary:visible")).count():
        folds.first.click()
    text = tab.inner_text("body")
    for value in NIGHTS:
        assert f"{value:.2f}×" in text


def test_the_rows_of_a_long_table_are_filtered(visit: Visit, site: Path) -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}
    tab = visit(next(page for page, text in texts.items() if "zero1-deepspeed" in text and 'id="filter"' in text))
    rows = tab.locator("main tbody tr:visible")
    count = rows.count()
    tab.locator("#filter").fill("ZERO1 deepspeed")
    assert 0 < rows.count() < count
    assert all("zero1" in text for text in rows.all_inner_texts())
    assert f"of {count}" in tab.get_by_role("status").inner_text()
