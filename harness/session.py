"""What one pytest session of the suites shares: what was asked for, the Lab, the store, the report."""

import importlib.util
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import catalog, plan, waivers
from harness.spec import Card, Case, Finding, Topology, Workload, gpus

DEFAULT_RANKS, DEFAULT_TIMEOUT = 8, 120.0


def request(config: pytest.Config) -> plan.Request:
    """The options as a request; usage errors are one clear line."""

    def names(option: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in (config.getoption(option) or "").split(",") if part.strip())

    asked = config.getoption("--gpus")
    found = 0 if asked == 0 else len(gpus.gpus())
    if asked is not None and asked > found:
        have = f"this machine has {found}" + (f" ({gpus.found().note})" if gpus.found().note else "")
        raise pytest.UsageError(f"--gpus {asked}: {have}; use --gpus {found} or --gpus 0 --ranks {asked} for CPU ranks")
    ranks = config.getoption("--ranks")
    if ranks is not None and ranks < 1:
        raise pytest.UsageError(f"--ranks must be at least 1, not {ranks}")
    use = found if asked is None else asked
    return plan.Request(
        topics=names("--topics"),
        engines=names("--engines"),
        workloads=names("--workload"),
        topologies=names("--topologies"),
        measures=names("--measures"),
        dtypes=names("--dtypes"),
        add_engines=tuple(config.getoption("--add-engine") or ()),
        gpus=use,
        ranks=ranks or use or DEFAULT_RANKS,
    )


class Session:
    """What one pytest session of the suites shares. The Lab, and with it the store, opens with the first case."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        if config.getoption("--add-engine"):
            sys.path.insert(0, os.getcwd())
        self.request = request(config)
        try:
            self.cards = plan.cards(self.request)
            self.cases = plan.cases(self.request, self.cards)
            known = waivers.read(_suites() / "waivers.toml")
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        self.waivers = tuple(waiver for waiver in known if waiver.device in ("", self.device))
        self.cores = len(os.sched_getaffinity(0))
        self.selected: list[Case] = []
        self.checked: list[Case] = []
        self.timed: list[Case] = []
        self._lab: Any = None
        self._store: Any = None
        self._run = ""
        self.started = time.monotonic()
        self.done = self.total = 0
        self.oracles = False  # whether any measure needs them

    def measured(self) -> Iterator[tuple[str, Case]]:
        """Every measure of every case."""
        for case in self.cases:
            for measure in plan.measures(case, self.request, self.cards[case.topic], self.cores):
                yield measure, case

    @property
    def held_waivers(self) -> list[waivers.Waiver]:
        """All of them in a session of everything; where options chose the work, those that speak of it."""
        asked = self.request
        if not any((asked.topics, asked.engines, asked.workloads, asked.topologies, asked.dtypes)):
            return list(self.waivers)
        return [waiver for waiver in self.waivers if any(waiver.matches(case.id) for case in self.cases)]

    @property
    def store_url(self) -> str:
        return self.config.getoption("--store") or "plumbline.db"

    def open_store(self) -> None:
        """Before anything runs: an unreachable store is a usage error, not the loss of an hour's figures."""
        from harness.store import Store, StoreError, environment

        try:
            self._store = Store.open(self.store_url)
            used = [gpu.name for gpu in gpus.gpus()[: self.request.gpus]] if self.request.gpus else []
            machine = environment(used, gpus.found().driver if used else None)
            self._run = self._store.begin(machine, shlex.join(["pytest", *self.config.invocation_params.args]))
        except StoreError as error:
            raise pytest.UsageError(f"--store: {error}") from None

    @property
    def lab(self) -> Any:
        if self._lab is None:
            from harness.blocks import adapters
            from harness.lab import Lab
            from harness.launch.local import LocalLauncher

            self._lab = Lab(
                self.cards,
                self.selected,
                LocalLauncher(self.request.gpus, adapters(self.selected, self.cards, self.request.gpus > 0)),
                self.record,
                self.waivers,
                self.config.getoption("--case-timeout") or DEFAULT_TIMEOUT,
                self.request.ranks,
            )
            self._lab.expect(self.checked, self.oracles)
            self._lab.timed = self.timed
            unnarrowed = replace(self.request, workloads=(), topologies=(), dtypes=())
            self._lab.universe = plan.cases(unnarrowed, self.cards)
        return self._lab

    def operators(self, case: Case) -> str:
        """The module that compiles what the case's engine needs; empty if it needs nothing."""
        return catalog.operators(self.cards[case.topic], case.engine, case.variant)

    def tell_builds(self, case: Case, reporter: Any) -> None:
        """Says what is being compiled; a case that needs it is not begun, so that its wait can be seen."""

        def tell(line: str) -> None:
            if reporter is not None:
                reporter.ensure_newline()
                reporter.write_line(line)

        if self._lab is not None:
            self._lab.builds.told(tell)
        if (module := self.operators(case)) and not self.lab.obstacle(case):
            self.lab.builds.wait(module, tell)

    def record(self, case: Case, findings: Sequence[Finding]) -> None:
        self._store.add(self._run, case, self.device, findings)

    @property
    def note(self) -> str:
        """Why this run has CPU ranks on a machine that seems to have GPUs."""
        return "" if self.config.getoption("--gpus") == 0 else gpus.found().note

    @property
    def device(self) -> str:
        return "cuda" if self.request.gpus else "cpu"

    def close(self, status: str) -> None:
        """Ends the ranks, closes the run in the store and writes the report."""
        if self._lab is not None:
            self._lab.close()
        if self._store is not None:
            for topic in sorted({case.topic for case in self.selected}):
                self.record(*_card_record(self.cards[topic]))
            self._store.finish(self._run, status)

    @property
    def shown_store(self) -> str:
        """The store's place, without a password."""
        url = self.store_url
        return url if "@" not in url else f"{url.partition('://')[0]}://…@{url.rpartition('@')[2]}"

    def report(self) -> str:
        from reports.render import ReportError, write

        folder = Path(self.config.getoption("--report") or "report")
        try:
            return f"report: {write(self._store, self._run, folder)}"
        except ReportError as error:
            return f"no report: {error}"

    @property
    def tally(self) -> Counter[str]:
        findings = self._lab.judged.values() if self._lab else ()
        return Counter(finding.verdict for group in findings for finding in group)


def _suites() -> Path:
    """Where the suites lie, in a checkout or installed; they are data here, and never imported."""
    found = importlib.util.find_spec("suites")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0])


def _card_record(card: Card) -> tuple[Case, list[Finding]]:
    """What the report says of a topic, kept with the run: a report is made from the store alone."""
    detail = {
        "title": card.title,
        "sources": list(card.sources),
        "variants": {name: dict(arguments) for name, arguments in card.variants.items()},
        "engines": list(card.adapted),
        "unavailable": card.unavailable,
    }
    about = Case(card.name, card.name, "", Topology(), Workload())
    return about, [Finding("card", "card", None, "", "pass", card.title, detail=detail)]
