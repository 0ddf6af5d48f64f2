"""Tells of a night: files beside the report, the page of a CI job, and a webhook."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any

from harness.nightly.night import BROKE, Night, Result, write
from harness.nightly.summary import line, markdown, summary

CI_PAGE = "GITHUB_STEP_SUMMARY"  # GitHub names the file of the job's page in this variable


def tell(night: Night) -> dict[str, Any]:
    """Posts the summary, and writes it. What cannot be told is one more step of the night, which broke."""
    if url := night.config.notify.webhook:
        trouble = post(url, summary(night), night.config.notify.timeout)
        _note(night, "the webhook was told", trouble and f"the webhook was not told: {trouble}")
    if page := os.environ.get(CI_PAGE):
        _note(night, "the job's page was written", _tried(lambda: _append(Path(page), markdown(summary(night)))))
    trouble = _tried(lambda: _files(night.folder, summary(night)))
    if trouble:
        _note(night, "", trouble)
    return summary(night)


def _note(night: Night, good: str, trouble: str) -> None:
    bad = Result("notify", "broke", trouble, BROKE)
    night.results.append(bad if trouble else Result("notify", "ok", good))
    print(line(night.results[-1]), flush=True)


def _files(folder: Path, found: dict[str, Any]) -> None:
    write(folder / "summary.json", json.dumps(found, indent=1) + "\n")
    write(folder / "summary.md", markdown(found))


def _append(page: Path, text: str) -> None:
    with page.open("a", encoding="utf-8") as file:
        file.write(text)


def _tried(action: Callable[[], None]) -> str:
    """The reason for which a file could not be written; empty if it was."""
    try:
        action()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def post(url: str, found: dict[str, Any], timeout: float) -> str:
    """Posts JSON. Returns the reason, in one line without the URL, which may hold a secret, if it was not accepted
    within ``timeout`` seconds in all."""
    if url.startswith("$"):
        name, url = url[1:], os.environ.get(url[1:], "")
        if not url:
            return f"the variable {name} is not set"
    reasons: list[str] = []
    # A thread, since the timeout of a socket starts anew with every byte of a slow server.
    asking = Thread(target=lambda: reasons.append(_posted(url, found, timeout)), daemon=True)
    asking.start()
    asking.join(timeout)
    return f"no answer in {timeout:g} s" if asking.is_alive() else reasons[0]


def _posted(url: str, found: dict[str, Any], timeout: float) -> str:
    try:
        headers = {"Content-Type": "application/json", "User-Agent": "plumbline"}
        request = urllib.request.Request(url, json.dumps(found).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=timeout):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return f"status {error.code}"
    except urllib.error.URLError as error:
        return str(getattr(error.reason, "strerror", None) or type(error.reason).__name__)
    except TimeoutError:
        return f"no answer in {timeout:g} s"
    except (OSError, HTTPException, ValueError) as error:
        return type(error).__name__
