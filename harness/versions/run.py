"""Runs releases one after the other: installs each, runs the findings' scripts and the cases in it, and judges."""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import catalog, findings
from harness.plan import cases
from harness.plugin import SUITES
from harness.spec import Finding
from harness.spec.requires import distributions
from harness.versions import bisect, child, judge
from harness.versions.asked import Asked
from harness.versions.model import RIGHT, UNKNOWN, WRONG, CaseRow, Cell, FindingRow, Release, Versions, summary
from harness.versions.place import Place, Unusable, put, same

PROGRESS = re.compile(r" · \d+ of \d+")  # in the line of a session that tells how far it is
STATES = {findings.STILL: WRONG, findings.GONE: RIGHT, findings.UNKNOWN: UNKNOWN}
NOTES = ("card", "calibration", "finding", "claim")  # measures that say nothing about a case
USAGE = (4, 5)  # pytest's exit codes: wrong usage, no case matches
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """``scripted``: findings to judge by their scripts, in ``seconds`` each; ``options``: pytest's, of the cases; None
    runs no cases."""

    asked: Asked
    scripted: tuple[Finding, ...]
    by_cases: tuple[Finding, ...]
    options: tuple[str, ...] | None
    store: str
    command: str
    whole: bool = False
    seconds: float = findings.SECONDS


def known(package: str) -> None:
    """A ValueError says that nothing here concerns a package, and names the nearest that something does."""
    every = cases.cards(cases.Request()).values()
    names = {*distributions(engine for card in every for engine in card.engines.values()), "torch"}
    catalog.known(package, names | {name for finding in findings.read() for name in libraries(finding)}, "package")


def libraries(finding: Finding) -> set[str]:
    """The distributions in whose versions a finding was seen."""
    return {release.split()[0] for release in finding.seen}


def engines(package: str) -> list[str]:
    """The engines that require a package; empty for PyTorch, which all of them use."""
    every = cases.cards(cases.Request()).values()
    named = {name for card in every for name, engine in card.engines.items() if package in distributions([engine])}
    return sorted(named)


class Runner:
    """Installs and runs what a plan asks for; releases stay installed in the cache."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        self.plan, self.tell = plan, tell
        self.started, self.clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        self.releases: dict[str, Release] = {}
        self.broken: dict[str, str] = {}  # why cases could not be judged, by version
        self.records: dict[str, list[Any]] = {}  # of the cases, by version

    def table(self) -> Versions:
        """Every release, with every finding and case that it shows."""
        cells: dict[str, dict[str, Cell]] = {}
        versions = self.plan.asked.versions
        for number, version in enumerate(versions):
            spent = time.monotonic() - self.clock
            left = spent / number * (len(versions) - number) / 60 if number else 0.0
            self.tell(
                f"{self.plan.asked.package} {version} ({number + 1} of {len(versions)})"
                + (f", about {left:.0f} min left" if left > 1.5 else "")
            )
            for finding, cell in self.release(version).items():
                cells.setdefault(finding, {})[version] = cell
        every = (*self.plan.scripted, *self.plan.by_cases)
        rows = [self.row(finding, cells[finding.id]) for finding in every if finding.id in cells]
        return self.result(rows, judge.changes(self.records, findings.read()))

    def release(self, version: str) -> dict[str, Cell]:
        """The state of each finding in one release, by id; findings that no case shows are left out."""
        place = self.install(version)
        if place is None:
            reason = self.releases[version].reason
            return {finding.id: Cell(UNKNOWN, reason) for finding in self.plan.scripted}
        found = {}
        for number, finding in enumerate(self.plan.scripted, start=1):
            found[finding.id] = self.script(place, finding)
            self.tell(f"  script {number} of {len(self.plan.scripted)} {finding.id}: {_told(found[finding.id])}")
        if self.plan.options is not None:
            records = self.cases(place, self.plan.options)
            for finding in self.plan.by_cases:
                if cell := judge.judge(finding, records):
                    found[finding.id] = cell
                    self.tell(f"  cases {finding.id}: {_told(cell)}")
        return found

    def bisect(self, finding: Finding) -> FindingRow:
        """Judges a finding by its script, or by the plan's cases."""
        scripted = finding in self.plan.scripted

        def state(version: str) -> Cell:
            place = self.install(version)
            if place is None:
                cell = Cell(UNKNOWN, self.releases[version].reason)
            elif scripted:
                cell = self.script(place, finding)
            else:
                cell = judge.judge(finding, self.cases(place, self.plan.options or ())) or Cell(
                    UNKNOWN, self.broken.get(version, "no case shows it"), "cases"
                )
            self.tell(f"  step {len(steps) + 1}: {self.plan.asked.package} {version}: {_told(cell)}")
            steps.append(version)
            return cell

        steps: list[str] = []
        versions = self.plan.asked.versions
        self.tell(f"{finding.id} over {len(versions)} releases, {versions[0]} to {versions[-1]}")
        recorded = [release.split()[1] for release in (*finding.seen, *finding.right)]
        return replace(self.row(finding, bisect.bisect(versions, state, recorded)), steps=tuple(steps))

    def row(self, finding: Finding, cells: Mapping[str, Cell]) -> FindingRow:
        unknown = {version: Cell(UNKNOWN, reason, "cases") for version, reason in self.broken.items()}
        every = unknown | dict(cells)
        ordered = {version: every[version] for version in self.plan.asked.versions if version in every}
        said = summary(self.plan.asked.versions, ordered)
        return FindingRow(finding.id, finding.title, finding.kind, finding.consequence, ordered, summary=said)

    def result(self, rows: Iterable[FindingRow], changed: Sequence[CaseRow] = ()) -> Versions:
        from harness.store import environment

        ordered = tuple(self.releases[version] for version in self.plan.asked.versions if version in self.releases)
        beside = environment(engines=[self.plan.asked.package])
        return Versions(
            self.plan.asked.package, self.started, self.plan.command, beside, ordered, tuple(rows), tuple(changed)
        )

    def install(self, version: str) -> Place | None:
        """The place of a release; None if it cannot be used, and then its row says why."""
        if version in self.releases:
            if self.releases[version].reason:
                return None
            return put(self.plan.asked.package, version, self.plan.whole, checked=True)
        begun = time.monotonic()
        try:
            place = put(self.plan.asked.package, version, self.plan.whole)
        except Unusable as error:
            self.releases[version] = Release(version, str(error))
            self.broken[version] = str(error)
            self.tell(f"  {UNKNOWN}: {error}")
            return None
        self.releases[version] = Release(version)
        self.tell(f"  {version} is installed and can be imported ({time.monotonic() - begun:.0f} s)")
        return place

    def script(self, place: Place, finding: Finding) -> Cell:
        path = findings.script(finding)
        assert path is not None
        state, reason = findings.check(path, self.plan.seconds, place.python, place.alone())
        return Cell(STATES[state], reason)

    def cases(self, place: Place, options: Sequence[str]) -> list[Any]:
        """The records of the cases in one release, from a session of its own, which the store keeps as a run."""
        if place.version in self.records:
            return self.records[place.version]
        from harness.store import Store

        store = Store.open(self.plan.store)
        before = {run["run"] for run in store.runs()}
        with tempfile.TemporaryDirectory(prefix="plumbline-versions-") as report:
            where = [str(SUITES / "test_measures.py"), f"--store={self.plan.store}", f"--report={report}"]
            command = [place.python, "-P", "-s", "-m", "pytest", *where, "-q", "-p", "no:cacheprovider", *options]
            ended = child.run(command, place.beside_plumbline(), Path(os.getcwd()), self._progress)
        new = [run for run in store.runs() if run["run"] not in before]
        told = [(run, run["environment"]["packages"].get(place.package)) for run in new]
        mine = [run for run, found in told if found is None or same(found, place.version)]
        if ended.code in USAGE:
            raise ValueError(f"the cases' session: {ended.reason('ERROR')}")
        if ended.code not in (0, 1) or not mine:
            reason = f"its session ended with {ended.code}: {ended.reason('ERROR')}"
            self.broken[place.version] = reason
            self.releases[place.version] = Release(place.version, errors={reason: 1})
            self.tell(f"  cases {UNKNOWN}: {reason}")
            return []
        found = store.records(mine[0]["run"])
        taken = self.records[place.version] = [record for record in found if record["measure"] not in NOTES]
        failed, judged = judge.errors(taken), sum(record["verdict"] in ("pass", "fail") for record in taken)
        self.releases[place.version] = Release(place.version, run=mine[0]["run"], errors=failed, judged=judged)
        for text, count in failed.items():
            self.tell(f"  {count} × {UNKNOWN}: {text}")
        return taken

    def _progress(self, line: str) -> None:
        if PROGRESS.search(line):
            self.tell(f"    {line}")


def options_of(chosen: Sequence[Finding]) -> tuple[str, ...]:
    """The options of a session of the cases that show these findings on a CPU; none if no case does."""
    every = cases.every(request := cases.Request(), cases.cards(request))
    symptoms = [symptom for finding in chosen for symptom in finding.symptoms if symptom.device != "cuda"]
    shown = [case for case in every if any(symptom.matches(case.id) for symptom in symptoms)]
    named = {
        "--topics": {case.topic for case in shown},
        "--engines": {case.engine for case in shown},
        "--measures": {symptom.measure for symptom in symptoms},
    }
    return tuple(f"{option}={','.join(sorted(names))}" for option, names in named.items()) if shown else ()


def _told(cell: Cell) -> str:
    return f"{cell.state}: {cell.reason}" if cell.reason else cell.state
