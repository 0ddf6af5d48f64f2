"""What every page must stand: a narrow window, a keyboard, and a reader without sight of charts."""

from typing import Any

WIDTHS, THEMES = (390, 1440), ("light", "dark")

# Elements that reach beyond the window, apart from those in boxes that scroll sideways by themselves.
OVER = """() => {
  const scrolls = (node) => node && (getComputedStyle(node).overflowX !== "visible" || scrolls(node.parentElement));
  const wide = (node) => node.getBoundingClientRect().right > innerWidth + 1 && !node.closest("svg");
  const over = [...document.body.querySelectorAll("*")].filter((node) => wide(node) && !scrolls(node.parentElement))
    .map((node) => node.outerHTML.slice(0, 120));
  return [document.documentElement.scrollWidth - innerWidth, over];
}"""
# Elements that a mouse can use, in sight or in a box that scrolls.
USABLE = """() => {
  const all = document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']");
  const seen = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest("[popover]");
  const usable = [...all].filter(seen);
  usable.forEach((node, place) => { node.dataset.place = place; });
  return usable.length;
}"""
FOCUSED = """() => {
  const node = document.activeElement;
  if (!node || node === document.body) return null;
  const { outlineStyle, outlineWidth } = getComputedStyle(node);
  const box = node.getBoundingClientRect();
  const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const visible = outlineStyle !== "none" && parseFloat(outlineWidth) > 0;
  return [node.dataset.place ?? "", node.outerHTML.slice(0, 120), visible, inside];
}"""


def assert_fits(tab: Any) -> None:
    beyond, over = tab.evaluate(OVER)
    assert over == []
    assert beyond <= 0


def assert_keyboard_reaches_everything(tab: Any) -> None:
    """Tab walks over everything that can be used, always with a visible focus, and leaves the page again."""
    count = tab.evaluate(USABLE)
    assert count > 0
    reached: dict[str, str] = {}
    for _ in range(count + 5):
        tab.keyboard.press("Tab")
        focused = tab.evaluate(FOCUSED)
        if focused is None or focused[0] in reached:
            break
        place, html, visible, inside = focused
        assert visible, f"the focus is not visible on {html}"
        assert inside, f"out of sight: {html}"
        reached[place] = html
    assert set(map(str, range(count))) <= set(reached), missing(tab, reached)


def missing(tab: Any, reached: dict[str, str]) -> list[str]:
    every = tab.eval_on_selector_all("[data-place]", "all => all.map(node => [node.dataset.place, node.outerHTML])")
    return [html[:120] for place, html in every if place not in reached]


def backgrounds(tab: Any) -> tuple[str, str]:
    """The colours of paper and ink."""
    style = "() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; }"
    paper, ink = tab.evaluate(style)
    return paper, ink
