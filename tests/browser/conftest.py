"""Pages in a real browser: Chromium, driven by Playwright, with nothing but files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from reports import folder
from reports.render import report
from tests.reports import planted
from tests.reports.browser import CHROMIUM
from tests.reports.test_bottlenecks import profiled

HEIGHT = 900  # px


class Visit(Protocol):
    def __call__(
        self, page: Path, width: int = 1440, theme: str = "light", anchor: str = "", javascript: bool = True
    ) -> Any:
        """Opens a page in a window of its own."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'plumbline[browser]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def asked() -> list[str]:
    """The addresses that the test's pages have asked for."""
    return []


@pytest.fixture
def complaints() -> list[str]:
    """Errors and warnings in the console of the test's pages."""
    return []


@pytest.fixture
def visit(chromium: Any, asked: list[str], complaints: list[str]) -> Iterator[Visit]:
    """The pages of a test must not complain, and must not ask for anything but files."""
    windows = []

    def open_page(
        page: Path, width: int = 1440, theme: str = "light", anchor: str = "", javascript: bool = True
    ) -> Any:
        size = {"width": width, "height": HEIGHT}
        window = chromium.new_context(
            viewport=size, color_scheme=theme, java_script_enabled=javascript, reduced_motion="reduce"
        )
        windows.append(window)
        tab = window.new_page()
        tab.set_default_timeout(20_000)
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(page.as_uri() + anchor)
        return tab

    yield open_page
    for window in windows:
        window.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("file:")] == []


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first screen of a report in several files."""
    records = [*planted.records(), planted.calibration(), profiled("torch"), profiled("deepspeed")]
    made = report(records, planted.run())
    return folder.replace(tmp_path_factory.mktemp("report"), made.index, made.beside, made.files)


@pytest.fixture(scope="session")
def violations(chromium: Any) -> Callable[..., list[str]]:
    """The serious and critical faults that axe-core finds in a page, or in a part of it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: 'plumbline[browser]'").Axe()

    def found(tab: Any, part: str | None = None) -> list[str]:
        return [
            f"{fault['id']}: {fault['help']}: {node['html'][:160]}"
            for fault in axe.run(tab, part, options={"preload": False}).response[
                "violations"
            ]  # it cannot read files of styles
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]

    return found
