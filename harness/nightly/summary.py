"""What a night found: as JSON for programs, and as Markdown for the page of a CI job."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from harness.nightly.night import Night, Result, worst
from harness.store.record import plain

SCHEMA = 1  # grows when a field changes its meaning or goes
STATUSES = {0: "passed", 1: "failed", 2: "interrupted"}  # by exit code; others: broken
SHOWN = 50  # rows of a list in Markdown
MARKS = {"ok": "✅", "failed": "❌", "broke": "💥", "interrupted": "⏹", "skipped": "⏭"}


def summary(night: Night) -> dict[str, Any]:
    """The night as JSON: the steps in the order in which they ran, and then the lists that a reader wants."""
    code = worst([result.code for result in night.results])
    steps = [{name: value for name, value in asdict(result).items() if name != "facts"} for result in night.results]
    suites = night.result("suites")
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "name": night.config.name,
        "status": STATUSES.get(code, "broken"),
        "exit_code": code,
        "run": night.run,
        "store": night.store.place,
        "started": night.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed": night.resumed,
        "steps": steps,
        "counts": dict(suites.facts.get("counts", {})) if suites else {},
        "failures": night.facts("suites", "failures"),
        "quarantined": [each for name in ("suites", "trend", "compare") for each in night.facts(name, "quarantined")],
        "quarantine_problems": night.facts("suites", "quarantine_problems"),
        "retries": night.facts("suites", "retries"),
        "regressions": night.facts("compare", "regressions"),
        "environment": night.facts("compare", "environment") or {},
        "alarms": night.facts("trend", "alarms"),
        "findings": night.facts("findings", "findings"),
        "report": night.facts("report", "report") or "",
        "site": night.facts("publish", "site") or "",
    }
    return dict(plain(found))  # JSON has no NaN


def markdown(found: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count:,} {verdict}" for verdict, count in found["counts"].items())
    lines = [
        f"## {_safe(found['name'])}: {found['status']}",
        "",
        f"Run `{found['run'] or 'none'}`, {found['started'][:16].replace('T', ' ')} UTC"
        + (f", resumed {found['resumed']} times" if found["resumed"] else "")
        + (f". Figures: {counts}." if counts else "."),
        "",
        *_table(("", "step", "", "s"), [_step(step) for step in found["steps"]]),
    ]
    new = [alarm for alarm in found["alarms"] if alarm["new"]]
    gone = [each for each in found["findings"] if each["state"] == "gone"]
    lists: tuple[tuple[str, Sequence[Mapping[str, Any]], tuple[str, ...]], ...] = (
        ("Failures", found["failures"], ("measure", "case", "verdict", "reason")),
        ("Regressions", found["regressions"], ("measure", "case", "quantity", "before", "after", "unit", "reason")),
        ("New alarms", new, ("measure", "case", "quantity", "run", "before", "after", "unit")),
        ("Findings that are gone", gone, ("id",)),
        ("In quarantine", found["quarantined"], ("measure", "case", "owner", "until", "why")),
        ("Tried again", found["retries"], ("measure", "case", "attempts", "signatures", "verdict")),
    )
    for title, rows, columns in lists:
        if rows:
            lines += ["", f"### {title} ({len(rows):,})", ""]
            lines += _table(columns, [[row[column] for column in columns] for row in rows[:SHOWN]])
            lines += [f"… and {len(rows) - SHOWN:,} more"] if len(rows) > SHOWN else []
    if found["quarantine_problems"]:
        lines += ["", "### Wrong entries of the quarantine", ""]
        lines += [f"- {_safe(problem)}" for problem in found["quarantine_problems"]]
    if found["environment"]:
        changed = [(name, *values) for name, values in found["environment"].items()]
        lines += ["", "### What else changed since the last night", "", *_table(("", "before", "after"), changed)]
    return "\n".join(lines) + "\n"


def _step(step: Mapping[str, Any]) -> list[Any]:
    return [MARKS[step["state"]], step["name"], f"{step['state']}: {step['line']}", f"{step['seconds']:.0f}"]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return _safe(", ".join(value) if isinstance(value, list) else "" if value is None else str(value))


def _safe(text: str) -> str:
    """One line that is neither markup nor the end of a cell."""
    text = re.sub(r"[|`*_\[\]\\]", r"\\\g<0>", html.escape(text, quote=False))
    return " ".join(text.split())


def line(result: Result) -> str:
    """A step's line for the terminal."""
    return f"nightly: {result.name}: {result.state}" + (f": {result.line}" if result.line else "")
