"""The shared state of a pytest session of the suites: the request, the Lab, the store and the report."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import catalog, findings, usage
from harness.judge import calibration
from harness.launch import placement
from harness.launch.base import LAUNCHERS, Launcher, local_cores
from harness.launch.placement import Cluster, LaunchError
from harness.measures import MEASURES
from harness.plan import cases, depth
from harness.plan.plan import Plan
from harness.spec import Card, Case, Claim, Finding, Measurement, Needs, Symptom, Topology, Workload, gpus
from harness.spec.requires import distributions

Compared = Callable[[Case, Measurement], Mapping[str, Any]]
DEFAULT_RANKS, DEFAULT_TIMEOUT = 8, 120.0
OWN = {  # options of some launchers
    "--hosts": ("torchrun",),
    "--remote-shell": ("torchrun",),
    "--nodes": ("slurm", "ray"),
    "--slurm": ("slurm", "torchrun"),
    "--ranks-per-node": ("torchrun", "slurm", "ray"),
    "--head": ("torchrun", "slurm", "ray"),
}


def request(config: pytest.Config) -> cases.Request:
    """The options as a request; a usage error is one line."""
    names = partial(usage.names, config)
    asked = usage.count(config, "--gpus", 0)
    found = 0 if asked == 0 else len(gpus.gpus())
    if asked is not None and asked > found and not _clustered(config):
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
        ranks=ranks or use * _nodes(config) or DEFAULT_RANKS,
        cores=local_cores(),
    )


def _clustered(config: pytest.Config) -> bool:
    return (config.getoption("--launcher") or "local") != "local"


def _nodes(config: pytest.Config) -> int:
    launcher = config.getoption("--launcher") or "local"
    for option, launchers in OWN.items():
        if config.getoption(option) is not None and launcher not in launchers:
            raise pytest.UsageError(f"{option} is for --launcher {' and '.join(launchers)}; leave it out")
    try:
        asked = usage.count(config, "--nodes", 1)
        return placement.count(launcher, usage.names(config, "--hosts"), asked, os.environ)
    except LaunchError as error:
        raise pytest.UsageError(f"--launcher {launcher}: {error}") from None


def cluster(config: pytest.Config, request: cases.Request) -> Cluster:
    """The nodes. ``request`` has the GPUs of each, and the ranks of all."""
    nodes, each = _nodes(config), usage.count(config, "--ranks-per-node", 1)
    if each and request.gpus and each > request.gpus:
        raise pytest.UsageError(f"--ranks-per-node {each}: a node has {request.gpus} GPUs (--gpus)")
    return Cluster(
        nodes=nodes,
        hosts=usage.names(config, "--hosts"),
        limit=each or -(-request.ranks // nodes),
        fill=each is not None,
        head=usage.place(config, "--head", ""),
        remote_shell=usage.place(config, "--remote-shell", Cluster.remote_shell),
        slurm=config.getoption("--slurm") or "",
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
        self.cluster = cluster(config, self.request)
        self.findings = findings.to_be_seen(self.known, self.device)
        self._lab: Any = None
        self._launcher: Launcher | None = None
        self._store: Any = None
        self._writer: Any = None
        self._run = ""
        self._compared: Any = None  # judges a measurement by the baseline's
        self._earlier: Any = None  # what the run had measured before it was resumed
        self.started = time.monotonic()
        self.done, self.replayed = 0, 0  # tests that were measured, and tests whose measurements were there
        self.status = "interrupted"  # until every test has run
        self.ends: list[str] = []  # lines about records and report for the terminal's summary
        self.handlers: dict[int, Any] = {}  # handlers of the signals that are ignored while the session closes

    def outlook(self) -> list[str]:
        """A note on the device if it is unexpected; the size of each depth, and its estimated duration here."""
        lines = [self.note] if self.note else []
        lines += self._store.notes if self._store else []
        for name in depth.DEPTHS:
            other = self.planned.at(name)
            mark = "*" if name == self.request.depth else " "
            size = f"{len(other.cases):5,} cases {len(other.tests):6,} tests, about {other.minutes:.0f} min"
            lines.append(f"{mark} --depth {name:<7} {size}")
        if len(self.plan.cases) < len(self.planned.cases):
            lines.append(f"  selected: {len(self.plan.cases):,} cases, {len(self.plan.tests):,} tests")
        return lines

    def resumed(self) -> list[str]:
        """What a run that is continued has already."""
        if self._earlier is None:
            return []
        kept, again = len(self._earlier.kept), len(self._earlier.attempts)
        line = f"run {self._run} goes on: {kept:,} of its {len(self.plan.tests):,} tests are measured"
        return [line + (f"; {again:,} are tried again after a failure of the infrastructure" if again else "")]

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
        from harness.store import Store, StoreError, Writer, command, environment

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"the report cannot be written there ({error.strerror}); give another folder"
            raise pytest.UsageError(f"--report {self.folder}: {reason}") from None
        try:
            store = Store.open(self.store_url)
            if _clustered(self.config):
                self._launcher = self._launch()  # nodes that do not come are a usage error too
            used = [gpu.name for gpu in gpus.gpus()[: self.request.gpus]] if self.request.gpus else []
            engines = distributions(engine for card in self.cards.values() for engine in card.engines.values())
            machine = environment(used, gpus.found().driver if used else None, engines)
            if self.cluster.nodes > 1:
                machine["nodes"] = self.cluster.nodes
            if baseline := self.config.getoption("--baseline"):
                self._compared = _compared(store, baseline, machine)
            line = command(["pytest", *self.config.invocation_params.args])
            if (run := self.config.getoption("--resume")) is None:
                run = store.begin(machine, line)
            else:
                self._resume(store, run, machine, line)
            self._store, self._run, self._writer = store, run, Writer(store, run)
        except StoreError as error:
            raise pytest.UsageError(f"--store: {error}") from None

    def _resume(self, store: Any, run: str, machine: dict[str, Any], line: str) -> None:
        from harness.run.earlier import earlier

        store.resume(run, machine, line)
        quiet = [name for name, measure in MEASURES.items() if measure.NEEDS is Needs.QUIET]
        self._earlier = earlier(store.records(run), self.plan.tests, quiet)

    def known_already(self, measure: str, case: Case) -> bool:
        """Whether the run had taken this measure before it was resumed."""
        return self._earlier is not None and (measure, case.id) in self._earlier.kept

    def _launch(self) -> Launcher:
        from harness.run.blocks import adapters

        name, use = self.config.getoption("--launcher") or "local", self.request.gpus
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if _clustered(self.config) and reporter is not None:
            reporter.write_line(f"waiting for {self.cluster.nodes} nodes (--launcher {name})")
        launch = catalog.load(LAUNCHERS[name])
        try:
            launcher: Launcher = launch(use, adapters(self.plan.cases, self.cards, use > 0), self.cluster)
        except LaunchError as error:
            raise pytest.UsageError(f"--launcher {name}: {error}") from None
        return launcher

    @property
    def lab(self) -> Any:
        if self._lab is None:
            from harness.run.lab import Lab
            from harness.run.recorder import Recorder
            from harness.run.runner import Runner

            chosen = self.plan
            launcher = self._launcher = self._launcher or self._launch()
            runner = Runner(self.cards, launcher, self.timeout, self.request.ranks, chosen.timed, chosen.cases)
            left = chosen.only([test for test in chosen.tests if not self.known_already(*test)])
            runner.expect(left.cases, left.checked, left.oracles)
            self._lab = Lab(runner, Recorder(self.record, self.findings, self.device, self._earlier, self._compared))
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
        for measure in {measurement.measure for measurement in measurements}:
            if self._earlier is not None and (measure, case.id) in self._earlier.replaced:
                self._store.forget(self._run, case, measure)
        problem = self._writer.add(case, self.device, measurements)
        plugins = self.config.pluginmanager
        reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
        if problem and reporter is not None:
            with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
                reporter.ensure_newline()
                reporter.write_line(problem)

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
            elif self._launcher is not None:
                self._launcher.close()
        finally:
            if self._store is not None:
                for topic in sorted({case.topic for case in self.plan.cases}):
                    self.record(*_card_record(self.cards[topic]))
                self.record(*_calibration_record())
                self.record(*finding_records(self.known))
                self._writer.flush()
                self._store.finish(self._run, status)
        if self.tally:
            self.ends.append(f"records: {self._store.place} (plumbline records)")

    def report(self) -> None:
        """Writes the report from this run's records in the store."""
        from reports.render import write

        single_file = self.config.getoption("--single-file")
        self.ends.append(f"report: {write(self._store, self._run, self.folder, single_file)}")

    @property
    def tally(self) -> Counter[str]:
        measurements = self._lab.recorder.judged.values() if self._lab else ()
        return Counter(measurement.verdict for group in measurements for measurement in group)


def _compared(store: Any, baseline: str, environment: Mapping[str, Any]) -> Compared:
    """Judges a measurement of this session by the runs that ``baseline`` names."""
    from harness.history.compare import Earlier
    from harness.history.select import select
    from harness.history.series import machine
    from harness.store import StoreError

    try:
        earlier = Earlier(store, select(store.runs(), baseline))
    except StoreError as error:
        raise pytest.UsageError(f"--baseline: {error}") from None
    return partial(earlier.noted, where=machine("", environment))


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
