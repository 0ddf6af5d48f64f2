"""Badges as SVG: a label and a word, so that the colour is not needed to read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

CHARACTER, PADDING, HEIGHT = 6.6, 12, 20  # px; the text is stretched to the width, whatever the reader's font
COLOURS = {"pass": "#14694f", "fail": "#a32a0a", "known": "#75570a", "none": "#5c626a"}  # white text on each reads well


@dataclass(frozen=True)
class Badge:
    label: str
    word: str
    state: str

    @property
    def width(self) -> int:
        return _width(self.label) + _width(self.word)

    @property
    def text(self) -> str:
        return f"{self.label}: {self.word}"

    @property
    def svg(self) -> str:
        left, right = _width(self.label), _width(self.word)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{HEIGHT}" role="img" '
            f'aria-label="{escape(self.text)}"><title>{escape(self.text)}</title>'
            f'<rect width="{self.width}" height="{HEIGHT}" rx="3" fill="#33373d"/>'
            f'<path fill="{COLOURS[self.state]}" d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{left}z"/>'
            '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
            f"{_text(self.label, left / 2)}{_text(self.word, left + right / 2)}</g></svg>\n"
        )


def standing(topic: str, engine: str, counts: Mapping[str, int]) -> Badge:
    """``counts``: figures by verdict."""
    failed, errors, passed = (counts.get(verdict, 0) for verdict in ("fail", "error", "pass"))
    if failed:
        word, state = f"{failed} of {failed + passed} fail", "fail"
    elif errors:
        word, state = f"{errors} error{'s' if errors > 1 else ''}", "fail"
    elif passed:
        word, state = f"{passed} pass", "pass"
    else:
        word, state = "not judged", "none"
    return Badge(f"{topic} {engine}", word, state)


def findings(wrong: int, all_: int) -> Badge:
    word = f"{wrong} wrong result{'s' if wrong != 1 else ''}, {all_ - wrong} other{'s' if all_ - wrong != 1 else ''}"
    return Badge("plumbline findings", word, "fail" if wrong else "known" if all_ else "none")


def _width(text: str) -> int:
    return round(len(text) * CHARACTER) + PADDING


def _text(text: str, middle: float) -> str:
    length = round(len(text) * CHARACTER)
    return f'<text x="{middle:.0f}" y="14" textLength="{length}">{escape(text)}</text>'
