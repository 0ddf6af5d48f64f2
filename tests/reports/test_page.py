"""The page in a reader's browser: light, as wide as the screen, and usable without a mouse."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports import overview, tidy
from reports.render import render
from tests.reports import planted
from tests.reports.browser import ask, needs_chromium

MOST_NODES = 15_000 // 30 * len(planted.TOPICS)  # a run of thirty topics stays under 15,000
ENGINES = ("one", "two", "three", "four", "five", "six", "seven", "eight_with_a_long_name", "nine")


def wide() -> list[planted.Record]:
    """Many engines: all of a topic's cases once more under each of these names."""
    records = planted.records()
    zero = [
        record for record in records if record["engine"] == "torch" and record["topic"] in ("zero", "data_parallel")
    ]
    return records + [
        record | {"engine": name, "case": record["case"].replace("torch", name)} for name in ENGINES for record in zero
    ]


class Live(HTMLParser):
    """Counts the elements outside templates."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.depth = self.count = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.count += not self.depth
        self.depth += tag == "template"

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "template"


def test_a_topic_is_light_until_it_is_unfolded(html: str) -> None:
    assert len(re.findall("<[a-z]", html)) > 4 * MOST_NODES
    assert Live(html).count < MOST_NODES


def test_failures_are_visible_before_anything_is_opened(html: str) -> None:
    live = re.sub(r"<template>.*?</template>", "", html.split('<section id="topic-zero"')[1], flags=re.S)
    assert "gradient of model.layers.0.self_attn.q_proj.weight is 2310 × the noise floor" in live


def test_the_matrix_has_few_columns_however_many_engines_there_are() -> None:
    view = tidy.view(wide(), planted.run(), {})
    columns = overview.shared(view)
    assert len(columns) == overview.MOST_COLUMNS < len(view.engines)
    assert columns[:2] == ("reference", "torch")
    for row in overview.matrix(view):
        shown = [cell.engine for cell in row.cells if cell.state != "absent"]
        assert set(shown) == {*row.topic.engines, *row.topic.adapters}


def test_no_reason_stands_in_a_title_alone(html: str) -> None:
    """A title is visible to a mouse but not to keyboard and touch. Titles inside a chart repeat what the drawing
    shows."""
    assert not re.search(r"<[^>]*\stitle=", html)


def test_every_button_of_a_note_opens_one_that_is_there(html: str) -> None:
    notes = re.findall(r'<div id="(n\d+)" popover>', html)
    opened = re.findall(r' popovertarget="(n\d+)"', html)
    assert len(notes) == len(set(notes))
    assert set(opened) == set(notes)
    for part in html.split("<template>"):  # a button's content is unfolded with the button
        assert set(re.findall(r' popovertarget="(n\d+)"', part)) <= set(re.findall(r'<div id="(n\d+)"', part))


def test_a_reader_without_javascript_is_told_what_is_missing(html: str) -> None:
    assert "needs JavaScript" in html.split("<noscript>")[1].split("</noscript>")[0]


WIDTHS = """
const measure = () => {
  const apart = ".scroll, .sr, .v > i, .untested > i, pre, nav ul, svg";
  const wide = (node) => !node.closest(apart) && node.getBoundingClientRect().right > innerWidth + 1;
  const over = [...document.querySelectorAll("main *, nav *")].filter(wide).map((node) => node.outerHTML.slice(0, 90));
  const box = document.querySelector("#overview .scroll");
  const page = document.documentElement.scrollWidth;
  return { screen: innerWidth, page, over, cut: box.scrollWidth - box.clientWidth };
};
const folded = measure();
for (let folds; (folds = document.querySelectorAll("details:not([open])")).length; ) {
  for (const fold of folds) fold.open = true;
  await new Promise((done) => setTimeout(done, 20));
}
return [folded, measure()];
"""


@pytest.fixture(scope="session")
def crowded() -> str:
    """A page with many engines, and with a command that no line can break."""
    return render(wide(), planted.run() | {"command": f"pytest suites/ --workload {'x' * 300}"})


@needs_chromium
@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_the_page_is_as_wide_as_the_screen(width: int, crowded: str, tmp_path: Path) -> None:
    for found in ask(crowded, WIDTHS, tmp_path, width):
        assert found["screen"] == width
        assert found["over"] == []
        assert found["page"] <= width
        assert found["cut"] <= 0 or width == 768  # in between, the matrix may scroll in its box


@needs_chromium
def test_a_topic_s_nodes_come_when_it_is_opened(html: str, tmp_path: Path) -> None:
    count = 'const count = () => document.querySelectorAll("*").length; const before = count();'
    opening = 'document.querySelector(".topic > details.part").open = true;'
    opening += " await new Promise((done) => setTimeout(done, 50));"
    before, after = ask(html, f"{count} {opening} return [before, count()];", tmp_path)
    assert before < MOST_NODES
    assert after > before + 100


SEARCH = """
const find = document.getElementById("find");
const seen = [];
const inSight = (node) => {
  const box = node.getBoundingClientRect();
  return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight && box.left < innerWidth;
};
const look = () => {
  const hits = document.querySelectorAll(".hit");
  const button = document.getElementById("next");
  const found = document.getElementById("found").textContent;
  seen.push([found, hits.length, hits[0]?.textContent ?? "", hits[0] ? inSight(hits[0]) && inSight(button) : false]);
};
const type = (text) => { find.value = text; find.dispatchEvent(new Event("input")); look(); };
const key = (name, shiftKey = false) => {
  find.dispatchEvent(new KeyboardEvent("keydown", { key: name, shiftKey }));
  look();
};
"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1440])
def test_the_search_goes_from_match_to_match_and_unfolds_them(width: int, html: str, tmp_path: Path) -> None:
    steps = 'type("zero1 MEGATRON"); key("Enter"); key("Enter"); key("Enter", true); key("Enter", true);'
    steps += 'document.getElementById("next").click(); look(); type("no such thing"); key("Enter"); type("");'
    seen = ask(html, f"{SEARCH} {steps} return seen;", tmp_path, width)
    total = int(seen[0][0].split()[0])
    counts = [f"{total} found", *(f"{at} of {total}" for at in (1, 2, 1, total, 1)), "0 found", "0 found", ""]
    assert total > 3
    assert [entry[0] for entry in seen] == counts
    assert [entry[1] for entry in seen] == [0, 1, 1, 1, 1, 1, 0, 0, 0]
    for _, marked, text, in_sight in seen:
        assert not marked or ("zero1" in text and "megatron" in text and in_sight)


@needs_chromium
def test_every_case_can_be_found(html: str, tmp_path: Path) -> None:
    cases = sorted({record["case"] for record in planted.records() if record["case"]})[::25]
    steps = "".join(f'type("{case}"); key("Enter");' for case in cases)
    seen = ask(html, f"{SEARCH} {steps} return seen;", tmp_path)
    for case, entry in zip(cases, seen[1::2], strict=True):
        assert case in entry[2]
        assert entry[3]


@needs_chromium
def test_a_cell_s_reasons_open_without_a_mouse(html: str, tmp_path: Path) -> None:
    script = """
    const cell = document.querySelector(".matrix .cell.skipped");
    cell.focus();
    const focused = document.activeElement === cell;
    cell.scrollIntoView({ block: "center", behavior: "instant" });
    cell.click();  // as Enter, the space bar and a finger do
    await new Promise((done) => setTimeout(done, 100));
    const note = document.querySelector("[popover]:popover-open");
    const box = note.getBoundingClientRect();
    const inside = box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight;
    return [focused, note.textContent, inside];
    """
    for width in (390, 1440):
        focused, text, in_sight = ask(html, script, tmp_path, width)
        assert focused
        assert any(reason in text for reason in planted.SKIPS.values())
        assert in_sight


@needs_chromium
def test_a_link_to_a_topic_unfolds_it(html: str, tmp_path: Path) -> None:
    script = """
    location.hash = "#topic-zero";
    await new Promise((done) => setTimeout(done, 50));
    return [...document.querySelectorAll("details.part[open]")].map((fold) => fold.parentElement.id);
    """
    assert ask(html, script, tmp_path) == ["topic-zero"]


@needs_chromium
def test_everything_is_unfolded_for_print(html: str, tmp_path: Path) -> None:
    folded = 'document.querySelectorAll("template, details:not([open])").length'
    assert ask(html, f'dispatchEvent(new Event("beforeprint")); return {folded};', tmp_path) == 0
