"""The shared state of a pytest session of the suites: the request, the Lab, the store and the report."""

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import catalog, findings, usage
from harness.judge import calibration
from harness.launch.base import LAUNCHERS, local_cores
from harness.plan import cases, depth
from harness.plan.plan import Plan
from harness.spec import Card, Case, Claim, Finding, Measurement, Symptom, Topology, Workload, gpus
from harness.spec.requires import distributions

DEFAULT_RANKS, DEFAULT_TIMEOUT = 8, 120.0


def request(config: pytest.Config) -> cases.Request:
    """The options as a request; a usage error is one line."""
    names = partial(usage.names, config)
    asked = usage.count(config, "--gpus", 0)
    found = 0 if asked == 0 else len(gpus.gpus())
    if asked is not None and asked > found:
        have = f"this machine has {found}" + (f" ({gpus.found().note})" if gpus.found().note else "")
        raise pytest.UsageError(f"--gpus {asked}: {have}; use --gpus {found} or --gpus 0 --ranks {asked} for CPU ranks")
    ranks = usage.count(config, "--ranks", 1)
    use = found if asked is None else asked
    return cases.Request(
        topics=names("--topics"),
        engines=names("--engines"),
        workloads=names("--workload"),
        topologies=names("--topologies"),
        measures=names("--measures"),
        dtypes=names("--dtypes"),
        add_engines=tuple(config.getoption("--add-engine") or ()),
        depth=config.getoption("--depth") or "default",
        gpus=use,
        ranks=ranks or use or DEFAULT_RANKS,
        cores=local_cores(),
    )


class Session:
    """The shared state of a pytest session of the suites. Runner and store open with the first case."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        if config.getoption("--add-engine"):
            sys.path.insert(0, os.getcwd())
        self.timeout = usage.seconds(config, "--case-timeout", DEFAULT_TIMEOUT)
        self.folder = Path(usage.place(config, "--report", "report"))
        self.store_url = usage.place(config, "--store", "plumbline.db")
        try:
            self.planned = Plan.of(request(config))  # the plan of the options
            self.known = findings.read()  # all findings
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        self.plan = self.planned  # the part of it that pytest selects
        self.request, self.cards = self.planned.request, self.planned.cards
        self.findings = tuple(  # those that a session on this device can show, with the symptoms that it can show
            replace(finding, symptoms=symptoms)
            for finding in self.known
            if (symptoms := tuple(s for s in finding.symptoms if s.device in ("", self.device)))
        )
        self._lab: Any = None
        self._store: Any = None
        self._run = ""
        self.started = time.monotonic()
        self.done = 0
        self.status = "interrupted"  # until every test has run
        self.ends: list[str] = []  # lines about records and report for the terminal's summary
        self.handlers: dict[int, Any] = {}  # handlers of the signals that are ignored while the session closes

    def outlook(self) -> list[str]:
        """A note on the device if it is unexpected; the size of each depth, and its estimated duration here."""
        lines = [self.note] if self.note else []
        for name in depth.DEPTHS:
            other = self.planned.at(name)
            mark = "*" if name == self.request.depth else " "
            size = f"{len(other.cases):5,} cases {len(other.tests):6,} tests, about {other.minutes:.0f} min"
            lines.append(f"{mark} --depth {name:<7} {size}")
        if len(self.plan.cases) < len(self.planned.cases):
            lines.append(f"  selected: {len(self.plan.cases):,} cases, {len(self.plan.tests):,} tests")
        return lines

    @property
    def held_findings(self) -> list[Finding]:
        """All findings with symptoms in a session of the whole grid; where options chose the work, those that match
        it, with the symptoms that do."""
        asked = self.request
        if not any((asked.topics, asked.engines, asked.workloads, asked.topologies, asked.dtypes)):
            return list(self.findings)
        ids = [case.id for case in self.planned.cases]
        return [
            replace(finding, symptoms=symptoms)
            for finding in self.findings
            if (symptoms := tuple(symptom for symptom in finding.symptoms if any(map(symptom.matches, ids))))
        ]

    def open_store(self) -> None:
        """Checks the store and the report's folder before anything runs: a problem is a usage error, not the loss of an
        hour's figures."""
        from harness.store import Store, StoreError, command, environment

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"the report cannot be written there ({error.strerror}); give another folder"
            raise pytest.UsageError(f"--report {self.folder}: {reason}") from None
        try:
            self._store = Store.open(self.store_url)
            used = [gpu.name for gpu in gpus.gpus()[: self.request.gpus]] if self.request.gpus else []
            engines = distributions(engine for card in self.cards.values() for engine in card.engines.values())
            machine = environment(used, gpus.found().driver if used else None, engines)
            self._run = self._store.begin(machine, command(["pytest", *self.config.invocation_params.args]))
        except StoreError as error:
            raise pytest.UsageError(f"--store: {error}") from None

    @property
    def lab(self) -> Any:
        if self._lab is None:
            from harness.run.blocks import adapters
            from harness.run.lab import Lab
            from harness.run.recorder import Recorder
            from harness.run.runner import Runner

            chosen, use = self.plan, self.request.gpus
            launch = catalog.load(LAUNCHERS[self.config.getoption("--launcher") or "local"])
            launcher = launch(use, adapters(chosen.cases, self.cards, use > 0))
            runner = Runner(self.cards, launcher, self.timeout, self.request.ranks, chosen.timed, chosen.cases)
            runner.expect(chosen.cases, chosen.checked, chosen.oracles)
            self._lab = Lab(runner, Recorder(self.record, self.findings, self.device))
        return self._lab

    def claim(self, topic: str, claim: Claim) -> Measurement:
        found: Measurement = self.lab.claim(topic, claim, [case for case in self.plan.cases if case.topic == topic])
        return found

    def stale(self, finding: Finding) -> list[Symptom]:
        """The finding's symptoms that match no failure of this session, although one could have been seen."""
        unnarrowed = replace(self.request, workloads=(), topologies=(), dtypes=())
        ran = {case.id for case in self.plan.cases if not self.lab.runner.crowded(case)}
        found: list[Symptom] = self.lab.recorder.stale(finding, cases.every(unnarrowed, dict(self.cards)), ran)
        return found

    def operators(self, case: Case) -> str:
        """The module that compiles code for the case's engine; empty if nothing is compiled."""
        return catalog.operators(self.cards[case.topic], case.engine, case.variant)

    def tell_builds(self, case: Case, quiet: bool, reporter: Any) -> None:
        """Prints the progress of compilation. A case that needs the compiled module, or is timed and needs ``quiet``,
        waits before it begins, and its wait is shown."""

        def tell(line: str) -> None:
            if reporter is not None:
                reporter.ensure_newline()
                reporter.write_line(line)

        if self._lab is not None:
            self._lab.runner.builds.told(tell)
        if quiet:
            self.lab.runner.builds.rest(tell)
        if (module := self.operators(case)) and not self.lab.runner.obstacle(case):
            self.lab.runner.builds.wait(module, tell)

    def record(self, case: Case, measurements: Sequence[Measurement]) -> None:
        self._store.add(self._run, case, self.device, measurements)

    @property
    def note(self) -> str:
        """The reason for CPU ranks on a machine that seems to have GPUs."""
        return "" if self.config.getoption("--gpus") == 0 else gpus.found().note

    @property
    def device(self) -> str:
        return "cuda" if self.request.gpus else "cpu"

    def close(self, status: str) -> None:
        """Ends the ranks and closes the run in the store."""
        try:
            if self._lab is not None:
                self._lab.runner.close()
        finally:
            if self._store is not None:
                for topic in sorted({case.topic for case in self.plan.cases}):
                    self.record(*_card_record(self.cards[topic]))
                self.record(*_calibration_record())
                self.record(*finding_records(self.known))
                self._store.finish(self._run, status)
        if self.tally:
            self.ends.append(f"records: {self._store.place} (plumbline records)")

    def report(self) -> None:
        """Writes the report from this run's records in the store."""
        from reports.render import write

        self.ends.append(f"report: {write(self._store, self._run, self.folder)}")

    @property
    def tally(self) -> Counter[str]:
        measurements = self._lab.recorder.judged.values() if self._lab else ()
        return Counter(measurement.verdict for group in measurements for measurement in group)


def _card_record(card: Card) -> tuple[Case, list[Measurement]]:
    """The facts about a topic that the report shows, kept with the run: a report is made from the store alone."""
    detail = {
        "title": card.title,
        "sources": list(card.sources),
        "variants": {name: dict(arguments) for name, arguments in card.variants.items()},
        "engines": list(card.adapted),
        "unavailable": card.unavailable,
    }
    about = Case(card.name, card.name, "", Topology(), Workload())
    return about, [Measurement("card", "card", None, "", "pass", card.title, detail=detail)]


def _calibration_record() -> tuple[Case, list[Measurement]]:
    """The measurements behind parity's margins, kept with the run."""
    about = Case("calibration", "calibration", "", Topology(), Workload())
    reason = "the largest ratios of honest runs and the smallest of planted faults"
    detail = {**calibration.read(), "faults": calibration.kills()}
    return about, [Measurement("calibration", "parity", None, "", "pass", reason, detail=detail)]


def finding_records(known: Sequence[Finding]) -> tuple[Case, list[Measurement]]:
    """All findings, for what the report opens with."""
    about = Case("findings", "findings", "", Topology(), Workload())
    found = []
    for finding in known:
        fields = {name: value for name, value in vars(finding).items() if name not in ("id", "symptoms")}
        more = {"review": str(finding.review), "link": finding.link, "script": findings.script(finding) is not None}
        more["repaired"] = findings.repaired(finding)
        found.append(Measurement("finding", finding.id, None, "", "pass", finding.title, detail=fields | more))
    return about, found
