"""The pytest plugin: options, cases as parameters, order, outcome and summary. Everything else is the Lab's."""

import importlib.util
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from harness import plan, waivers
from harness.options import OPTIONS
from harness.replay import ReplayClock
from harness.spec import VERDICTS, Card, Case, Finding, Topology, Workload
from harness.spec.finding import worst
from harness.spec.requires import gpus

SESSION = pytest.StashKey["Session"]()
HYPOTHESIS = "hypothesispytest"  # its pytest plugin's name
DEFAULT_RANKS, DEFAULT_TIMEOUT = 8, 120.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("plumbline", "Plumbline: engines against references")
    for name, keywords in OPTIONS.items():
        group.addoption(name, **keywords)


def pytest_configure(config: pytest.Config) -> None:
    for name in (*plan.MEASURES, "gpu"):
        config.addinivalue_line("markers", f"{name}: select the suites' {name} tests")
    config.addinivalue_line("markers", "case(topic, variant, engine, ...): select exact cases, as in case(engine='x')")


def request(config: pytest.Config) -> plan.Request:
    """The options as a request; usage errors are one clear line."""

    def names(option: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in (config.getoption(option) or "").split(",") if part.strip())

    found = len(gpus())
    asked = config.getoption("--gpus")
    if asked is not None and asked > found:
        have = f"this machine has {found}"
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
            self.waivers = waivers.read(_suites() / "waivers.toml")
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        self.cores = len(os.sched_getaffinity(0))
        self.selected: list[Case] = []
        self.checked: list[Case] = []
        self.timed: list[Case] = []
        self._lab: Any = None
        self._store: Any = None
        self._run = ""
        self.started = time.monotonic()
        self.done = self.total = 0
        self.parity = False  # whether it is asked of any case

    @cached_property
    def _measures(self) -> list[list[str]]:
        """Of each case."""
        return [plan.measures(case, self.request, self.cards[case.topic], self.cores) for case in self.cases]

    def measured(self, measure: str) -> list[Case]:
        return [case for case, measures in zip(self.cases, self._measures, strict=True) if measure in measures]

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
            self._run = self._store.begin(environment(), shlex.join(["pytest", *self.config.invocation_params.args]))
        except StoreError as error:
            raise pytest.UsageError(f"--store: {error}") from None

    @property
    def lab(self) -> Any:
        if self._lab is None:
            from harness.lab import Lab
            from harness.launch.local import LocalLauncher

            self._lab = Lab(
                self.cards,
                self.selected,
                LocalLauncher(self.request.gpus),
                self.record,
                self.waivers,
                self.config.getoption("--timeout") or DEFAULT_TIMEOUT,
                self.request.ranks,
            )
            self._lab.expect(self.checked, self.parity)
            self._lab.timed = self.timed
            self._lab.universe = [case.id for case in self.cases]
        return self._lab

    def record(self, case: Case, findings: Sequence[Finding]) -> None:
        self._store.add(self._run, case, self.device, findings)

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
        "engines": list(card.engines),
    }
    about = Case(card.name, card.name, "", Topology(), Workload())
    return about, [Finding("card", "card", None, "", "pass", card.title, detail=detail)]


def session_of(config: pytest.Config) -> Session:
    if SESSION not in config.stash:
        config.stash[SESSION] = Session(config)
    return config.stash[SESSION]


def pytest_collection(session: pytest.Session) -> None:
    """Wrong options are a usage error before anything is collected, one line instead of one error a file."""
    named = [Path(argument.partition("::")[0]).resolve() for argument in session.config.args]
    ours = ["suites" in (path.name, path.parent.name) for path in named]
    if any(ours):
        session_of(session.config)
    if all(ours) and session.config.pluginmanager.has_plugin(HYPOTHESIS):
        # It imports all of Hypothesis to say, at the end, nothing: a second of a session that draws no examples.
        session.config.pluginmanager.unregister(name=HYPOTHESIS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``case``, ``claim`` and ``waiver`` are parameters of the suites' tests."""
    if Path(metafunc.module.__file__ or "").parent.name != "suites":
        return
    session = session_of(metafunc.config)
    if "case" in metafunc.fixturenames:
        measure = next(mark.name for mark in metafunc.definition.iter_markers() if mark.name in plan.MEASURES)
        found = [pytest.param(case, id=case.id, marks=_marks(session, case)) for case in session.measured(measure)]
        metafunc.parametrize("case", found)
    if "claim" in metafunc.fixturenames:
        claims = [(card.name, claim) for card in session.cards.values() for claim in card.claims]
        metafunc.parametrize("claim", claims, ids=[f"{topic}-{claim.name}" for topic, claim in claims])
    if "waiver" in metafunc.fixturenames:
        held = session.held_waivers
        metafunc.parametrize("waiver", held, ids=[waiver.case for waiver in held])


def _marks(session: Session, case: Case) -> list[pytest.MarkDecorator]:
    from harness.catalog import case_mark

    card = session.cards[case.topic]
    sizes = {axis: getattr(case.topology, axis) for axis in case.topology.axes()}
    facts = {"topic": case.topic, "variant": case.variant, "engine": case.engine, "topology": str(case.topology)}
    work = {"workload": case.workload.name, "dtype": case.workload.dtype, "optimizer": case.workload.optimizer}
    marks = [pytest.mark.case(**facts, **work, **sizes, **case_mark(card, case.variant))]
    if "cuda" in card.engines[case.engine].requires:
        marks.append(pytest.mark.gpu)
    group = f"{case.topic} {case.topology} {case.workload.name} {case.workload.dtype}"
    return [*marks, pytest.mark.benchmark(timer=ReplayClock(), group=group)]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Untimed first, by topology and engine; then timed blocks; the ledger last. What was deselected is not a peer."""
    if SESSION not in config.stash:
        return
    session = config.stash[SESSION]
    items[:] = [item for item in items if not _empty(item)]
    ours = [item for item in items if _case(item)]
    session.selected = list(dict.fromkeys(case for item in ours if (case := _case(item))))
    session.timed = [c for item in ours if item.get_closest_marker("throughput") and (c := _case(item))]
    session.total = len(ours)
    session.parity = any(item.get_closest_marker("parity") for item in ours)
    places = {case.id: index for index, case in enumerate(session.cases)}

    def key(item: pytest.Item) -> tuple[Any, ...]:
        case = _case(item)
        if case is None:
            return (2,) if Path(str(item.path)).parent.name == "suites" else (0,)
        if _timed(item):
            return 1, case.topic, case.topology, places[case.id]
        return 0, case.topic, case.topology, case.engine, case.workload.name, places[case.id]

    items.sort(key=key)
    session.checked = list(dict.fromkeys(case for item in items if (case := _case(item)) and _checked(item)))
    if ours and not config.option.collectonly:
        session.open_store()
        signal.signal(signal.SIGTERM, _terminated)


def _empty(item: pytest.Item) -> bool:
    """pytest's stand-in for a test without parameters, say of waivers where there are none."""
    mark = item.get_closest_marker("skip")
    return bool(mark and "empty parameter set" in str(mark.kwargs.get("reason", "")))


def _timed(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("timeline", "throughput"))


def _checked(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("parity", "memory", "traffic"))


def _terminated(*_: object) -> None:
    """SIGTERM ends as Ctrl-C does: ranks die, what was measured stays in the store."""
    raise KeyboardInterrupt("terminated")


def _case(item: pytest.Item) -> Case | None:
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
    return case if isinstance(case, Case) else None


@pytest.fixture
def lab(pytestconfig: pytest.Config) -> Any:
    """The session's Lab."""
    return session_of(pytestconfig).lab


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> ReplayClock:
    """The clock that this test's ``benchmark`` reads."""
    mark = request.node.get_closest_marker("benchmark")
    assert isinstance(mark.kwargs["timer"], ReplayClock)
    return mark.kwargs["timer"]


@pytest.fixture
def require(pytestconfig: pytest.Config) -> Any:
    """Passes, fails or skips by the worst of some findings, with its figure."""
    strict = bool(getattr(pytestconfig.option, "strict", False))  # pytest's own --strict: an absent engine is no excuse

    def decide(findings: list[Finding]) -> None:
        for finding in findings:
            if finding.verdict in ("fail", "error") and "waiver" not in finding.detail:
                pytest.fail(f"{finding.measure} {finding.quantity}: {finding.reason}", pytrace=False)
        found = worst([finding for finding in findings if "waiver" not in finding.detail] or findings)
        if "waiver" in found.detail:
            pytest.xfail(f"{found.quantity}: {found.detail['waiver']}")
        if found.verdict == "skipped" and strict and "not installed" in found.reason:
            pytest.fail(found.reason, pytrace=False)
        if found.verdict != "pass":
            pytest.skip(f"{found.verdict}: {found.reason}")
        if any("waiver" in finding.detail for finding in findings):
            waived = next(finding for finding in findings if "waiver" in finding.detail)
            pytest.xfail(f"{waived.quantity}: {waived.detail['waiver']}")

    return decide


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Says where a long run stands each time the topic or topology changes."""
    case = _case(item)
    if case is not None and SESSION in item.config.stash:
        _progress(item, item.config.stash[SESSION], case)
    return (yield)


_Place = pytest.StashKey[tuple[str, ...]]()


def _progress(item: pytest.Item, session: Session, case: Case) -> None:
    timed = "timed rounds" if _timed(item) else "checked runs"
    place = (case.topic, str(case.topology), timed)
    if item.config.stash.get(_Place, None) != place:
        item.config.stash[_Place] = place
        reporter = item.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            spent = time.monotonic() - session.started
            left = spent / session.done * (session.total - session.done) if session.done else None
            text = f"{' · '.join(place)} · {session.done} of {session.total}"
            text += f" · about {left / 60:.0f} min left" if left and left > 90 else ""
            reporter.ensure_newline()
            reporter.write_line(text, bold=True)
    session.done += 1


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if SESSION in session.config.stash:
        interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
        session.config.stash[SESSION].close("interrupted" if interrupted else "finished")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = config.stash.get(SESSION, None)
    if session is None or not session.tally:
        return
    terminalreporter.section("plumbline")
    tally = session.tally
    terminalreporter.write_line("findings: " + ", ".join(f"{tally[v]} {v}" for v in reversed(VERDICTS) if tally[v]))
    terminalreporter.write_line(f"records: {session.shown_store} (plumbline records)")
    terminalreporter.write_line(session.report())
