"""A page per case: its newest figures, their history on each machine, raw samples, environment and command."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from harness.history import Alarm
from reports import units
from reports.commands import repeated, reproducing
from reports.site.chart import Mark, Spot, colour, dash, draw
from reports.site.source import Run
from reports.site.summary import NOISE
from reports.tidy import worst

Row = Mapping[str, Any]
LIMIT = 300_000  # bytes of a page
SHOWN = (120, 60, 30, 12, 4)  # runs on a page, the first number with which it is small enough
VALUES, SAMPLES, DETAIL = 12, 200, 1500  # values under a chart, samples, and characters of a detail that are printed


@dataclass(frozen=True)
class Newest:
    """The newest record of a figure. ``again``: how far runs of the same on the same machine were apart."""

    record: Row
    value: str
    law: str
    bound: str
    noise: str
    again: str
    samples: str
    detail: str


@dataclass(frozen=True)
class Chart:
    measure: str
    quantity: str
    svg: str
    changes: tuple[str, ...]
    values: tuple[tuple[str, str, str], ...]  # run, figure, verdict; the newest first


@dataclass(frozen=True)
class Visit:
    """A run of the case. ``changed``: the software that differs from the run before it on the same machine."""

    run: Run
    line: int
    verdict: str
    figures: int
    command: str
    changed: str
    outdated: bool


@dataclass(frozen=True)
class CasePage:
    case: str
    record: Row  # any record of the newest run, for the names
    run: Run
    verdict: str
    command: str
    newest: tuple[Newest, ...]
    charts: tuple[Chart, ...]
    visits: tuple[Visit, ...]
    older: int  # runs that are not shown
    machines: tuple[tuple[str, str, str], ...]  # name, colour, dash
    torch: str  # the newest in the store
    findings: tuple[str, ...]

    @property
    def outdated(self) -> bool:
        return self.run.torch != self.torch

    @property
    def facts(self) -> dict[str, Any]:
        """What the list of cases says of it."""
        names = ("topic", "variant", "engine", "topology", "workload", "dtype", "device")
        return {name: self.record[name] for name in names} | {
            "case": self.case,
            "verdict": self.verdict,
            "run": self.run.run,
            "torch": self.run.torch,
            "runs": len(self.visits) + self.older,
        }


def page(
    case: str,
    rows: Sequence[Row],
    runs: Mapping[str, Run],
    records: Sequence[Row],
    alarms: Sequence[Alarm],
    torch: str,
    shown: int,
) -> CasePage:
    """``rows``: of the history; ``records``: of the newest run with this case, with details; ``runs``: by id; ``torch``
    is the newest in the store; ``shown``: the number of runs to draw."""
    ids = sorted({row["run"] for row in rows}, key=lambda run: (runs[run].started, run))
    lines = {machine: n for n, machine in enumerate(dict.fromkeys(runs[run].machine for run in ids))}
    places = {run: place for place, run in enumerate(ids[-shown:])}
    by_figure: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (runs[row["run"]].started, row["run"])):
        by_figure.setdefault((row["measure"], row["quantity"]), []).append(row)
    run = runs[ids[-1]]
    charts = [_chart(case, key, found, places, runs, lines, alarms) for key, found in by_figure.items()]
    return CasePage(
        case=case,
        record=records[0],
        run=run,
        verdict=worst(record["verdict"] for record in records),
        command=reproducing(_repeated(run.command), case),
        newest=tuple(_newest(r, by_figure.get((r["measure"], r["quantity"]), ()), runs) for r in records),
        charts=tuple(chart for chart in charts if chart),
        visits=tuple(_visits(case, ids, rows, runs, lines, torch))[:shown],
        older=max(0, len(ids) - shown),
        machines=tuple((machine, colour(line), dash(line)) for machine, line in lines.items()),
        torch=torch,
        findings=tuple(dict.fromkeys(f for record in records if (f := (record["detail"] or {}).get("finding")))),
    )


def _newest(record: Row, rows: Sequence[Row], runs: Mapping[str, Run]) -> Newest:
    detail = dict(record["detail"] or {})
    samples = detail.pop("samples", None) or ()
    listed = ", ".join(units.figure(value, record["unit"]) for value in samples[:SAMPLES])
    if len(samples) > SAMPLES:
        listed += f" and {len(samples) - SAMPLES} more in the run's records"
    raw = json.dumps(detail, ensure_ascii=False, indent=1) if detail else ""
    noise = detail.get(NOISE)
    return Newest(
        record=record,
        value=units.figure(record["value"], record["unit"]),
        law=units.figure(record["law"], record["unit"]),
        bound=units.figure(record["bound"], record["unit"]),
        noise=units.share(noise) if noise is not None and math.isfinite(noise) else "",
        again=again(rows, runs),
        samples=listed,
        detail=raw if len(raw) <= DETAIL else f"{raw[:DETAIL]} … (the rest is in the run's records)",
    )


def again(rows: Sequence[Row], runs: Mapping[str, Run]) -> str:
    """The largest difference between two runs in turn of the same software on the same machine that both passed: the
    noise from night to night."""
    last: dict[tuple[str, str], float] = {}
    apart = []
    for row in rows:
        value, run = row["value"], runs[row["run"]]
        if value is None or not math.isfinite(value) or row["verdict"] != "pass":
            continue
        key = (run.machine, run.software)
        if key in last:
            size = max(abs(value), abs(last[key]))
            apart.append(abs(value - last[key]) / size if size else 0.0)
        last[key] = value
    if not apart:
        return ""
    return f"{units.share(max(apart)) if max(apart) else 'equal'} in {len(apart)} pair{'s' if len(apart) > 1 else ''}"


def _chart(
    case: str,
    key: tuple[str, str],
    rows: Sequence[Row],
    places: Mapping[str, int],
    runs: Mapping[str, Run],
    lines: Mapping[str, int],
    alarms: Sequence[Alarm],
) -> Chart | None:
    drawn = [r for r in rows if r["run"] in places and r["value"] is not None and math.isfinite(r["value"])]
    if not drawn:
        return None
    unit = drawn[-1]["unit"]
    spots = [
        Spot(places[r["run"]], r["value"], r["verdict"], r["run"], lines[runs[r["run"]].machine])
        for r in drawn
        if r["unit"] == unit
    ]
    mine = [a for a in alarms if (a.series.measure, a.series.quantity) == key]
    texts = {alarm.run: change(alarm) for alarm in mine}
    marks = [Mark(places[run], text) for run, text in texts.items() if run in places]
    values = [(r["run"], units.figure(r["value"], r["unit"]), r["verdict"]) for r in reversed(drawn[-VALUES:])]
    label = f"{' '.join(key)} of {case} in {len(spots)} runs; the values are listed below"
    svg = draw(spots, len(places), unit, label, drawn[-1]["law"], drawn[-1]["bound"], marks)
    return Chart(*key, svg, tuple(texts.values()), tuple(values))


def change(alarm: Alarm) -> str:
    """A change point in words."""
    unit = alarm.series.unit
    before, after = units.figure(alarm.before, unit), units.figure(alarm.after, unit)
    text = f"{'better' if alarm.improved else 'worse'} since run {alarm.run}: {before} → {after}"
    if alarm.before:
        text += f" ({100 * (alarm.after / alarm.before - 1):+.3g} %)"
    text += f", p = {alarm.p:.1g}"
    differs = [f"{name} {old} → {new}" for name, (old, new) in alarm.environment.items()]
    with_it = f"with it changed: {', '.join(differs)}" if differs else "the recorded environment is the same"
    return f"{text}; {with_it}"


def _visits(
    case: str, ids: Sequence[str], rows: Sequence[Row], runs: Mapping[str, Run], lines: Mapping[str, int], torch: str
) -> list[Visit]:
    """The newest first."""
    verdicts: dict[str, list[str]] = {}
    for row in rows:
        verdicts.setdefault(row["run"], []).append(row["verdict"])
    last: dict[str, Run] = {}
    found = []
    for name in ids:
        run = runs[name]
        before = last.get(run.machine)
        found.append(
            Visit(
                run=run,
                line=lines[run.machine],
                verdict=worst(verdicts[name]),
                figures=len(verdicts[name]),
                command=reproducing(_repeated(run.command), case),
                changed=", ".join(differences(before, run)) if before else "",
                outdated=run.torch != torch,
            )
        )
        last[run.machine] = run
    return found[::-1]


def differences(before: Run, after: Run) -> list[str]:
    """The software that changed between two runs."""
    old, new = before.packages, after.packages
    names = dict.fromkeys((*old, *new))
    found = [f"{n} {old.get(n, 'none')} → {new.get(n, 'none')}" for n in names if old.get(n) != new.get(n)]
    commits = [str(run.environment.get("commit") or "unknown")[:9] for run in (before, after)]
    return found + ([f"commit {commits[0]} → {commits[1]}"] if commits[0] != commits[1] else [])


@cache
def _repeated(command: str) -> str:
    """Runs of a night have one command, and every page names it again."""
    return repeated(command)
