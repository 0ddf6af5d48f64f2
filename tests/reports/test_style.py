"""The style sheet: every colour in use exists, and is readable in both themes."""

import re
from importlib.resources import files

import pytest

from harness.spec import VERDICTS
from reports import palette

STYLE = files("reports").joinpath("assets", "style.css").read_text(encoding="utf-8")
COLOURS = {
    name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", STYLE)
}
TEXT = ("ink", "muted", "link", "pass", "fail", "error", "inconclusive", "invalid", "skipped")


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("background", ["paper", "raised", "tint"])
def test_text_is_readable_on_every_background(theme: int, background: str) -> None:
    for name in TEXT:
        assert contrast(COLOURS[name][theme], COLOURS[background][theme]) >= 4.5, name


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_engines_stand_out_from_the_paper(theme: int) -> None:
    for slot in range(palette.SLOTS):
        assert contrast(COLOURS[f"e{slot}"][theme], COLOURS["paper"][theme]) >= 3, slot


def test_every_colour_that_the_page_names_is_defined(html: str) -> None:
    assert set(re.findall(r"var\(--([\w-]+)\)", html)) <= set(COLOURS)
    assert {f"p{place}" for place in range(palette.SHADES)} <= set(COLOURS)


def test_every_box_that_scrolls_sideways_holds_what_is_hidden_in_it() -> None:
    """Text for screen readers only is positioned absolutely, relative to the box: otherwise it widens the whole
    page."""
    boxes = re.findall(r"(?m)^\s*([^{}\n]+) \{([^}]*overflow-x: auto[^}]*)\}", STYLE)
    assert {".scroll", "nav ul"} <= {name for name, _ in boxes}
    assert [name for name, rule in boxes if "position: relative" not in rule and name != "pre"] == []


def test_every_verdict_has_a_sign_that_is_not_read_aloud() -> None:
    for verdict in VERDICTS:
        assert re.search(rf'\.v\.{verdict}::before {{ content: "(.) "; content: "\1 " / ""; }}', STYLE), verdict
