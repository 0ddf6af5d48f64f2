"""The summary reaches its reader, or its failure does."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.nightly.night import Night, Result
from harness.nightly.notify import post, tell
from harness.nightly.summary import markdown, summary
from tests.nightly.examples import night

FAILURE = {"measure": "memory", "case": "zero3-x", "verdict": "fail", "reason": "a | b <img> `c`"}
SCHEMA: dict[str, type] = {
    "schema": int,
    "name": str,
    "status": str,
    "exit_code": int,
    "run": str,
    "store": str,
    "started": str,
    "finished": str,
    "resumed": int,
    "steps": list,
    "counts": dict,
    "failures": list,
    "quarantined": list,
    "quarantine_problems": list,
    "retries": list,
    "regressions": list,
    "environment": dict,
    "alarms": list,
    "findings": list,
    "report": str,
    "site": str,
}


@contextmanager
def server(status: int = 200, seconds: float = 0.0, drops: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """The URL of a server that takes one request, and what it got. It waits for some seconds before it answers, or for
    a moment before each of its headers."""
    got: list[Any] = []
    left = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            left.wait(seconds)
            with suppress(OSError):  # the client may be gone
                self.wfile.write(f"HTTP/1.0 {status} x\r\n".encode())
                for _ in range(drops):
                    self.wfile.write(b"x: y\r\n")
                    left.wait(0.1)
                self.wfile.write(b"\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.handle_request)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}/secret", got
        finally:
            left.set()
            thread.join()


def dead() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/secret"


@pytest.fixture
def failed(tmp_path: Path) -> Night:
    found = night(tmp_path)
    facts = {"counts": {"pass": 3, "fail": 1}, "failures": [FAILURE]}
    found.results.append(Result("suites", "failed", "1 failures", 1, 2.5, facts))
    return found


def test_a_summary_has_its_fields_in_their_types_and_is_json(failed: Night) -> None:
    found = summary(failed)
    assert {name: type(value) for name, value in found.items()} == SCHEMA
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["status"], found["exit_code"], found["failures"]) == ("failed", 1, [FAILURE])
    assert found["steps"] == [{"name": "suites", "state": "failed", "line": "1 failures", "code": 1, "seconds": 2.5}]


def test_a_figure_that_json_does_not_know_is_null(failed: Night) -> None:
    failed.results.append(Result("compare", "ok", "", facts={"regressions": [{"before": float("nan"), "after": 1.0}]}))
    assert summary(failed)["regressions"] == [{"before": None, "after": 1.0}]


def test_a_reason_breaks_no_table_and_is_no_markup(failed: Night) -> None:
    (row,) = [line for line in markdown(summary(failed)).splitlines() if "zero3-x" in line]
    assert row == r"| memory | zero3-x | fail | a \| b &lt;img&gt; \`c\` |"


def test_a_long_list_is_cut_and_says_so(failed: Night) -> None:
    found = {**summary(failed), "failures": [FAILURE] * 60}
    text = markdown(found)
    assert text.count("zero3-x") == 50
    assert "### Failures (60)" in text
    assert "… and 10 more" in text


def test_a_webhook_gets_the_summary(failed: Night) -> None:
    with server() as (url, got):
        assert post(url, summary(failed), 10.0) == ""
    assert got[0]["failures"] == [FAILURE]


def test_a_webhook_may_be_a_variable(failed: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    assert post("$NIGHT_WEBHOOK", {}, 10.0) == "the variable NIGHT_WEBHOOK is not set"
    with server() as (url, got):
        monkeypatch.setenv("NIGHT_WEBHOOK", url)
        assert post("$NIGHT_WEBHOOK", {"a": 1}, 10.0) == ""
    assert got == [{"a": 1}]


def test_a_webhook_that_refuses_is_dead_or_wrong_is_one_line_without_its_address() -> None:
    with server(status=500) as (url, _):
        told = [post(url, {}, 10.0)]
    told += [post(dead(), {}, 10.0), post("http://", {}, 10.0)]
    assert told[:2] == ["status 500", "Connection refused"]
    assert all(told)
    assert not any("secret" in each or "\n" in each for each in told)


@pytest.mark.parametrize("slow", [{"seconds": 30.0}, {"drops": 90}])
def test_a_slow_webhook_is_left(slow: dict[str, Any]) -> None:
    with server(**slow) as (url, _):
        assert post(url, {}, 0.3) in ("no answer in 0.3 s", "timed out")


def test_a_webhook_that_is_not_told_breaks_a_step_and_the_files_say_so(failed: Night, tmp_path: Path) -> None:
    url = dead()
    failed.config = night(tmp_path, f'[notify]\nwebhook = "{url}"').config
    found = tell(failed)
    assert found["exit_code"] == 3
    assert found["steps"][-1]["line"] == "the webhook was not told: Connection refused"
    assert json.loads((failed.folder / "summary.json").read_text())["steps"] == found["steps"]
    assert "Connection refused" in (failed.folder / "summary.md").read_text()


def test_the_page_of_a_ci_job_gets_the_markdown_after_what_it_has(
    failed: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    tell(failed)
    assert page.read_text().startswith("before\n## nightly: failed\n")


def test_files_that_cannot_be_written_are_one_line_of_a_step(
    failed: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "page.md"))
    (failed.folder / "summary.json").mkdir()
    found = tell(failed)
    assert [step["state"] for step in found["steps"][1:]] == ["broke", "broke"]
    assert found["exit_code"] == 3
