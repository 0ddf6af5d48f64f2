"""Opens a report in headless Chromium at a given width, and evaluates JavaScript in it."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (or Chrome) to lay the page out")

# A window is at least 500 px wide, but a frame can be as narrow as a phone, and media queries use the frame's width.
FRAME = (
    '<body style="margin:0"><iframe src="page.html" width="WIDTH" height="900" style="border:0"></iframe><pre></pre>'
)
FRAME += "<script>onmessage = (event) => { document.querySelector('pre').textContent = event.data; };</script>"
ASKING = (
    "<script>(async () => { SCRIPT })().then((answer) => parent.postMessage(JSON.stringify(answer), '*'));</script>"
)


def ask(html: str, script: str, folder: Path, width: int = 1440, options: Sequence[str] = ()) -> Any:
    """The return value of ``script``, the body of an async function run at the end of the page; None if it raises."""
    assert CHROMIUM
    folder.joinpath("page.html").write_text(html + ASKING.replace("SCRIPT", script), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=10000"]
    flags += [f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},900", *options, "--dump-dom"]
    found = subprocess.run([CHROMIUM, *flags, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    answer = re.search(r"<pre>(.*?)</pre>", found.stdout, re.S)
    return json.loads(unescape(answer[1])) if answer and answer[1] else None
