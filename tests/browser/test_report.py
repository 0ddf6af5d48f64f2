"""A reader opens a report from a folder: searches, filters, opens cases; without a mouse and on a phone as well."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.checks import (
    THEMES,
    WIDTHS,
    assert_fits,
    assert_keyboard_reaches_everything,
    backgrounds,
)
from tests.browser.conftest import Visit

CASE = "zero1-megatron-dp2-fp32"
ZERO = "#topic-zero > details.part"


def sections(asked: list[str]) -> list[str]:
    return [url.rpartition("/")[2] for url in asked if url.endswith(".js")]


def open_cases(tab: Any) -> Any:
    """Opens a topic and its list of cases; returns the list."""
    tab.locator(f"{ZERO} > summary").click()
    tab.locator(f"{ZERO} details.cases > summary").click()
    cases = tab.locator(f"{ZERO} details.cases")
    cases.locator("table").wait_for()
    return cases


def test_the_first_screen_loads_nothing_else(visit: Visit, index: Path, asked: list[str]) -> None:
    tab = visit(index)
    assert "What is wrong today" in tab.inner_text("main")
    assert tab.locator(".matrix").is_visible()
    assert asked == [index.as_uri()]


def test_opening_a_topic_loads_its_section_alone_and_once(visit: Visit, index: Path, asked: list[str]) -> None:
    tab = visit(index)
    cases = open_cases(tab)
    assert CASE in cases.inner_text()
    summary = tab.locator(f"{ZERO} > summary")
    summary.click()
    summary.click()
    assert sections(asked) == ["zero.js"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_cases_of_a_topic_are_filtered(visit: Visit, index: Path, width: int) -> None:
    tab = visit(index, width)
    cases = open_cases(tab)
    rows = cases.locator("tbody tr:visible")
    count = rows.count()
    cases.get_by_label("Only cases with").fill("megatron FP32")
    few = rows.count()
    assert 0 < few < count
    assert all("megatron" in text and "fp32" in text for text in rows.all_inner_texts())
    assert cases.get_by_role("status").inner_text() == f"{few} of {count}"
    cases.get_by_label("Only cases with").fill("")
    assert rows.count() == count


@pytest.mark.parametrize("width", WIDTHS)
def test_the_search_loads_every_section_and_shows_a_case(
    visit: Visit, index: Path, width: int, asked: list[str]
) -> None:
    tab = visit(index, width)
    tab.locator("#find").fill(f"{CASE}")
    tab.locator("#find").press("Enter")
    tab.locator(".hit").wait_for()
    assert re.fullmatch(r"1 of \d+", tab.locator("#found").inner_text())
    assert CASE in tab.locator(".hit").inner_text()
    assert len(sections(asked)) == len(set(sections(asked))) == tab.locator("details.part").count()


def test_a_finding_s_link_shows_the_case(visit: Visit, index: Path) -> None:
    tab = visit(index)
    link = tab.locator("#wrong a[data-go]").first
    case = link.inner_text()
    link.click()
    tab.locator(".hit").wait_for()
    assert case in tab.locator(".hit").inner_text()


def test_a_link_to_a_topic_opens_it(visit: Visit, index: Path, asked: list[str]) -> None:
    tab = visit(index)
    tab.get_by_role("navigation").get_by_role("link", name="ZeRO").click()
    tab.locator(f"{ZERO} details.cases").wait_for()
    assert sections(asked) == ["zero.js"]
    tab.go_back()
    tab.locator("nav a[href='#topic-preference']").click()
    tab.locator("#topic-preference details.cases").wait_for()


def test_a_link_to_a_case_shows_it(visit: Visit, index: Path, asked: list[str]) -> None:
    tab = visit(index, anchor=f"#topic-zero/{CASE}")
    tab.locator(".hit").wait_for()
    assert CASE in tab.locator(".hit").inner_text()
    assert sections(asked) == ["zero.js"]


@pytest.mark.parametrize("theme", THEMES)
def test_the_theme_follows_the_reader_and_is_switched(visit: Visit, index: Path, theme: str) -> None:
    tab = visit(index, theme=theme)
    before = backgrounds(tab)
    button = tab.locator("#theme")
    assert button.inner_text() == ("Light" if theme == "dark" else "Dark")
    button.click()
    assert backgrounds(tab)[0] != before[0]
    assert button.inner_text() == ("Dark" if theme == "dark" else "Light")
    button.click()
    assert backgrounds(tab) == before


def test_everything_is_reached_by_the_keyboard(visit: Visit, index: Path) -> None:
    assert_keyboard_reaches_everything(visit(index))


def test_a_topic_and_a_case_are_opened_by_the_keyboard_alone(visit: Visit, index: Path) -> None:
    tab = visit(index)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.url.endswith("#overview")
    cell = tab.locator(".matrix .cell").first
    cell.focus()
    tab.keyboard.press("Enter")
    note = tab.locator("[popover]:popover-open")
    assert "right" in note.inner_text()
    tab.keyboard.press("Escape")
    assert note.count() == 0
    assert cell.evaluate("node => node === document.activeElement")
    summary = tab.locator(f"{ZERO} > summary")
    summary.focus()
    tab.keyboard.press("Enter")
    tab.locator(f"{ZERO} details.cases").wait_for()
    inside = f"() => !!document.activeElement.closest({ZERO!r})"
    for _ in range(300):
        tab.keyboard.press("Tab")
        assert tab.evaluate(inside), "the keyboard left the topic before its list of cases"
        if tab.evaluate("document.activeElement.parentElement.className") == "cases":
            break
    tab.keyboard.press("Space")
    tab.locator(".filter").wait_for()
    tab.keyboard.press("Tab")
    tab.keyboard.type(CASE)
    assert tab.locator(f"{ZERO} details.cases tbody tr:visible").count() == 1


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window_and_axe_finds_nothing_serious(
    visit: Visit, index: Path, width: int, theme: str, violations: Callable[..., list[str]]
) -> None:
    tab = visit(index, width, theme)
    assert_fits(tab)
    assert violations(tab) == []
    open_cases(tab)
    tab.evaluate(f"document.querySelectorAll({ZERO + ' details'!r}).forEach(fold => {{ fold.open = true; }})")
    tab.wait_for_timeout(100)
    assert_fits(tab)
    assert violations(tab, "#topic-zero") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_reader_without_javascript_follows_a_link_to_each_section(
    visit: Visit, index: Path, width: int, asked: list[str]
) -> None:
    tab = visit(index, width, javascript=False)
    tab.locator(f"{ZERO} > summary").click()
    tab.locator(f"{ZERO} > .apart a").click()
    assert tab.url.endswith("/zero.html")
    tab.locator("details.cases > summary").click()
    assert CASE in tab.locator("details.cases").inner_text()
    tab.get_by_role("link", name="The whole report").click()
    assert tab.url == f"{index.as_uri()}#topic-zero"
    assert sections(asked) == []


@pytest.mark.parametrize(("width", "theme"), list(zip(WIDTHS, THEMES, strict=True)))
def test_a_section_s_own_page_stands_the_same_checks(
    visit: Visit, index: Path, width: int, theme: str, violations: Callable[..., list[str]]
) -> None:
    (page,) = index.parent.glob("sections-*/zero.html")
    tab = visit(page, width, theme)
    tab.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    assert_fits(tab)
    assert violations(tab) == []
    assert backgrounds(tab)[0] != "rgba(0, 0, 0, 0)"


def test_a_page_that_was_copied_without_its_sections_says_so(
    visit: Visit, index: Path, tmp_path: Path, complaints: list[str]
) -> None:
    tab = visit(Path(shutil.copy(index, tmp_path)))
    tab.locator(f"{ZERO} > summary").click()
    tab.get_by_text("zero.html cannot be read: its folder belongs beside this page.").wait_for()
    tab.locator("#find").fill("megatron")
    tab.get_by_text(re.compile(r"\d+ found; \d+ sections cannot be read")).wait_for()
    assert all("ERR_FILE_NOT_FOUND" in text for text in complaints)
    complaints.clear()


def test_a_chart_s_values_are_also_text(visit: Visit, index: Path) -> None:
    """A chart has a name and a caption; the figures that it draws stand in the topic's tables."""
    tab = visit(index, anchor="#topic-zero")
    tab.locator(f"{ZERO} figure").first.wait_for()
    charts = tab.locator(f"{ZERO} figure").all()
    assert len(charts) > 2
    for chart in charts:
        assert chart.locator("svg[role=img]").get_attribute("aria-label")
        assert chart.locator("figcaption").inner_text().strip()
    tables = tab.locator(f"{ZERO} .pivot").all_inner_texts()
    drawn = tab.locator(f"{ZERO} figure svg text").all_text_contents()
    assert any("zero3" in text for text in drawn)
    for row in ("zero1", "zero2", "zero3"):
        assert any(row in text for text in tables)
