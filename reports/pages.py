"""The content of each section of the report, as plain data: the templates only arrange it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reports import units
from reports.bottlenecks import shares
from reports.commands import repeated, reproducing
from reports.figures import Figure, figures
from reports.overview import MatrixRow, case_tally
from reports.pivot import Pivot, figure_tables, parity_table
from reports.tidy import CaseView, Record, RunView, TopicView, fast, parity, worst
from reports.timelines import timelines

NOTES = {
    "Fallbacks": "fallback",
    "Slow references": "marked",
    "Configurations": "configuration",
}  # title → the key in a measurement's detail
BAD = ("error", "fail", "invalid")
STATUSES = ("contradicted", "reproduced", "formula only", "out of reach here")


@dataclass(frozen=True)
class BadCase:
    """A case with a problem: the command that reproduces it, and a line for each of its figures."""

    id: str
    command: str
    lines: tuple[str, ...]


@dataclass
class Issue:
    """Cases with the same problem: one engine, and the same message (errors) or the same variant and measure
    (figures)."""

    verdict: str
    engine: str
    headline: str
    finding: str = ""
    trace: str = ""
    cases: list[BadCase] = field(default_factory=list)


@dataclass
class Note:
    """A remark, such as a fallback, stated once for all its cases."""

    text: str
    engine: str
    cases: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CaseRow:
    """``marks`` holds (verdict, figure) for each of the run's measures; the verdict is empty if the measure was not
    requested."""

    id: str
    engine: str
    marks: tuple[tuple[str, str], ...]
    remark: str


@dataclass(frozen=True)
class Section:
    """``example``: the command that repeats the first case."""

    topic: TopicView
    row: MatrixRow
    tally: Mapping[str, int]
    promised: tuple[Pivot, ...]
    parity: Pivot | None
    measured: tuple[Pivot, ...]
    figures: tuple[Figure, ...]
    issues: tuple[Issue, ...]
    known: tuple[Issue, ...]
    notes: Mapping[str, Sequence[Note]]
    cases: tuple[CaseRow, ...]
    example: str

    @property
    def contents(self) -> str:
        """A summary of the folded content, in words."""
        known = f"{len(self.known)} known issue{'s' if len(self.known) > 1 else ''}" if self.known else ""
        tables = "tables" if self.parity or self.promised or self.measured else ""
        parts = [known, tables, "charts" if self.figures else "", f"all {len(self.cases)} cases"]
        text = ", ".join(part for part in parts if part)
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class ClaimRow:
    topic: str
    name: str
    text: str
    source: str
    published: str
    measured: str
    status: str
    arithmetic: str
    remark: str


def section(view: RunView, row: MatrixRow, slots: Mapping[str, int]) -> Section:
    topic, again = row.topic, repeated(view.run.get("command") or "")
    tables = figure_tables(topic)
    found = issues(topic, again)
    return Section(
        topic=topic,
        row=row,
        tally=case_tally(topic),
        promised=tuple(table for table in tables if table.has_law),
        parity=parity_table(topic),
        measured=tuple(table for table in tables if not table.has_law),
        figures=tuple(figure for figure in (*figures(topic, slots), shares(topic), *timelines(topic)) if figure),
        issues=tuple(issue for issue in found if not issue.finding),
        known=tuple(issue for issue in found if issue.finding),
        notes={title: notes(topic, key) for title, key in NOTES.items()},
        cases=tuple(case_row(case, view.measures) for case in topic.cases),
        example=reproducing(again, topic.cases[0].id) if topic.cases else "",
    )


def issues(topic: TopicView, again: str) -> list[Issue]:
    """All failures, errors and invalid figures, the worst first; those that a finding explains have its id.
    ``again``: the run's command, from :func:`reports.commands.repeated`."""
    grouped: dict[tuple[str, ...], Issue] = {}
    for case in topic.cases:
        mine: dict[tuple[str, ...], list[Record]] = defaultdict(list)
        for record in case.records:
            if record["verdict"] in BAD:
                mine[_likeness(case, record)].append(record)
        for key, records in mine.items():
            issue = grouped.setdefault(key, Issue(key[0], case.engine, key[-1], key[2]))
            lines = tuple(dict.fromkeys(line for record in records for line in _lines(record)))
            issue.cases.append(BadCase(case.id, reproducing(again, case.id), lines))
            if not issue.trace:
                issue.trace = next((r["reason"] for r in records if "\n" in r["reason"].strip()), "")
    order = (*BAD, "inconclusive", "skipped", "pass")
    return sorted(grouped.values(), key=lambda issue: order.index(issue.verdict))


def _likeness(case: CaseView, record: Record) -> tuple[str, ...]:
    finding = record["detail"].get("finding", "")
    if record["verdict"] == "error":
        return "error", case.engine, finding, units.first_line(record["reason"]) or "no message was recorded"
    return record["verdict"], case.engine, finding, f"{record['measure']} of {case.setting.variant}"


def _lines(record: Record) -> list[str]:
    """The figure, the reason, and the first divergence; an error's message is already in its headline."""
    lines = []
    if record["verdict"] != "error":
        figure = units.figure(record["value"], record["unit"])
        if record["unit"] == "× floor" and record["value"] is not None:
            figure += " floor"
        if record["law"] is not None:
            figure += f", promised {units.figure(record['law'], record['unit'])}"
        if record["bound"] is not None:
            figure += f", allowed {units.figure(record['bound'], record['unit'])}"
        reason = units.first_line(record["reason"])
        lines.append(f"{record['quantity']}: {figure}" + (f". {reason}" if reason else ""))
    divergence = record["detail"].get("first_divergence")
    if divergence and str(divergence) not in " ".join(lines):
        lines.append(f"first divergence: {divergence}")
    return lines


def notes(topic: TopicView, key: str) -> list[Note]:
    """The notes that the measurements' details hold under ``key``."""
    found: dict[tuple[str, str], Note] = {}
    for case in topic.cases:
        for text in dict.fromkeys(r["detail"][key] for r in case.records if r["detail"].get(key)):
            found.setdefault((case.engine, text), Note(text, case.engine)).cases.append(case.id)
    return list(found.values())


def case_row(case: CaseView, measures: Sequence[str]) -> CaseRow:
    deciding = {
        "parity": parity(case),
        "memory": _first(case, "memory", "states", "saved", "peak"),
        "traffic": _first(case, "traffic", "bytes"),
        "timeline": _first(case, "timeline", "bubble", "hidden"),
        "throughput": fast(case) or _first(case, "throughput"),
    }
    marks = []
    for measure in measures:
        record = deciding.get(measure) or _first(case, measure)
        figure = units.figure(record["value"], record["unit"]) if record and record["value"] is not None else ""
        marks.append((case.verdict(measure), figure))
    reasons = dict.fromkeys(units.first_line(r["reason"]) for r in case.records if r["verdict"] != "pass")
    return CaseRow(case.id, case.engine, tuple(marks), "; ".join(reason for reason in reasons if reason))


def _first(case: CaseView, measure: str, *quantities: str) -> Record | None:
    found = case.of(measure, *quantities) or case.of(measure)
    return next((record for record in found if record["value"] is not None), found[0] if found else None)


def claims(view: RunView) -> list[ClaimRow]:
    """The ledger; published figures that did not hold come first."""
    rows = []
    for record in view.claims:
        detail = record["detail"]
        status = detail.get("status") or record["verdict"]
        rows.append(
            ClaimRow(
                topic=record["topic"],
                name=record["quantity"],
                text=detail.get("text", ""),
                source=detail.get("source", ""),
                published=units.figure(record["law"], record["unit"]),
                measured=units.figure(record["value"], record["unit"]),
                status=status,
                arithmetic=detail.get("arithmetic", ""),
                remark=units.first_line(record["reason"]),
            )
        )
    return sorted(rows, key=lambda row: STATUSES.index(row.status) if row.status in STATUSES else -1)


def summary(view: RunView, rows: list[MatrixRow]) -> dict[str, str]:
    """The facts of the header, each in a few words."""
    environment, run = view.environment, view.run
    cases = [case for topic in view.topics for case in topic.cases]
    verdicts = [worst(r["verdict"] for r in case.records if r["verdict"] != "skipped") for case in cases]
    largest = sorted({case.setting.topology for case in cases if case.setting.topology})
    memory = environment.get("memory")
    machine = [f"{environment['cores']} × {environment['cpu']}"] if environment.get("cpu") else []
    machine += [units.figure(memory, "bytes")] if memory else []
    machine += list(dict.fromkeys(environment.get("gpus") or ())) or ["no GPU"]
    took = units.duration(run.get("started"), run.get("finished"))
    products = dict.fromkeys(r["detail"]["products"] for r in view.measurements if r["detail"].get("products"))
    return {
        "Run": f"{run.get('run', units.NONE)}, {run.get('status', 'status not recorded')}",
        "Started": f"{units.moment(run.get('started'))}, took {took}",
        "Hardware": ", ".join(machine),
        "Software": ", ".join(f"{name} {version}" for name, version in versions(view).items()),
        **({"Products": "; ".join(products)} if products else {}),
        "Topologies": ", ".join(largest) or units.NONE,
        "Cases": f"{len(cases)} (topics: {len(rows)}, engines: {len({case.engine for case in cases})}), "
        f"{sum(verdict in ('error', 'fail') for verdict in verdicts)} of them with a failure or an error",
        "Measurements": f"{len(view.measurements)}, by verdict below",
    }


def versions(view: RunView) -> dict[str, str]:
    """Python and the installed packages."""
    environment = view.environment
    found = {"Python": environment["python"]} if environment.get("python") else {}
    return found | {name: version for name, version in (environment.get("packages") or {}).items() if version}
