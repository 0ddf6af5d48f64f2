"""The suites' additions to pytest: options, cases as parameters, order, outcome and summary. The Lab does the rest."""

import signal
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.measures import MEASURES
from harness.options import OPTIONS
from harness.plugin import SUITES
from harness.replay import ReplayClock, play
from harness.session import Session
from harness.spec import VERDICTS, Case, Measurement, Needs
from harness.spec.measurement import worst
from harness.usage import refuse_plugins

SESSION = pytest.StashKey[Session]()
HYPOTHESIS = "hypothesispytest"  # the name of its pytest plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("plumbline", "Plumbline: engines against references")
    for name, keywords in OPTIONS.items():
        try:
            group.addoption(name, **keywords)
        except ValueError:
            message = "another pytest plugin has an option of this name; disable that plugin with -p no:ITS_NAME"
            raise pytest.UsageError(f"{name}: {message}") from None


def pytest_configure(config: pytest.Config) -> None:
    refuse_plugins(config)
    for name, measure in MEASURES.items():
        config.addinivalue_line("markers", f"{name}: select a measure. {(measure.__doc__ or '').strip()}")
    config.addinivalue_line("markers", "gpu: select cases whose engine needs a GPU")
    config.addinivalue_line("markers", "case(topic, variant, engine, ...): select exact cases, as in case(engine='x')")


def session_of(config: pytest.Config) -> Session:
    if SESSION not in config.stash:
        config.stash[SESSION] = Session(config)
    return config.stash[SESSION]


def pytest_collection(session: pytest.Session) -> None:
    """Wrong options are one usage error before collection, instead of one error in each file."""
    session_of(session.config)
    named = [Path(argument.partition("::")[0]).resolve() for argument in session.config.args]
    if all(path.is_relative_to(SUITES) for path in named) and session.config.pluginmanager.has_plugin(HYPOTHESIS):
        # The Hypothesis plugin imports all of Hypothesis for its summary: a second, in a session that draws no
        # examples.
        session.config.pluginmanager.unregister(name=HYPOTHESIS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Passes ``measure`` and ``case``, ``claim`` and ``finding`` to the suites' tests as parameters."""
    if not _in_suites(metafunc.definition):
        return
    session = session_of(metafunc.config)
    if "case" in metafunc.fixturenames:
        marks = {case.id: _marks(session, case) for case in session.planned.cases}
        found = [
            pytest.param(
                measure, case, id=f"{measure}-{case.id}", marks=[getattr(pytest.mark, measure), *marks[case.id]]
            )
            for measure, case in session.planned.tests
        ]
        metafunc.parametrize(("measure", "case"), found)
    if "claim" in metafunc.fixturenames:
        claims = [(card.name, claim) for card in session.cards.values() for claim in card.claims]
        metafunc.parametrize("claim", claims, ids=[f"{topic}-{claim.name}" for topic, claim in claims])
    if "finding" in metafunc.fixturenames:
        held = session.held_findings
        metafunc.parametrize("finding", held, ids=[finding.id for finding in held])


def _marks(session: Session, case: Case) -> list[pytest.MarkDecorator]:
    from harness.catalog import case_mark

    card = session.cards[case.topic]
    sizes = {axis: getattr(case.topology, axis) for axis in case.topology.axes()}
    facts = {"topic": case.topic, "variant": case.variant, "engine": case.engine, "topology": str(case.topology)}
    work = {"workload": case.workload.name, "dtype": case.workload.dtype, "optimizer": case.workload.optimizer}
    marks = [pytest.mark.case(**facts, **work, **sizes, **case_mark(card, case.variant))]
    if "cuda" in card.engines[case.engine].requires:
        marks.append(pytest.mark.gpu)
    return marks


def pytest_itemcollected(item: Any) -> None:
    """pytest-benchmark's options, such as ``--benchmark-only``, select the tests that use its fixture."""
    if _measure(item) == "throughput" and item.config.pluginmanager.has_plugin("benchmark"):
        item.fixturenames = [*item.fixturenames, "benchmark"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order: untimed cases by topology and engine, where engines that compile something are last; comparisons of
    engines; timed blocks; the ledger. A deselected case is not a peer."""
    if SESSION not in config.stash:
        return
    session = config.stash[SESSION]
    items[:] = [item for item in items if not _empty(item)]
    places = {case.id: index for index, case in enumerate(session.planned.cases)}
    order = list(MEASURES)

    def key(item: pytest.Item) -> tuple[Any, ...]:
        case = _case(item)
        if case is None:
            return (3,) if _in_suites(item) else (0,)
        place = (places[case.id], order.index(_measure(item)))  # the full order: a plugin may have shuffled the items
        if _needs(item) is Needs.PEERS:
            return 1, case.topic, case.topology, *place
        if _needs(item) is Needs.QUIET:
            return 2, case.topic, case.topology, *place
        late = bool(session.operators(case))  # they compile while the other cases run
        return 0, late, case.topic, case.topology, case.engine, case.workload.name, *place

    items.sort(key=key)
    session.plan = session.planned.only([(_measure(item), case) for item in items if (case := _case(item))])
    option = config.option
    recorded = session.plan.tests or any(map(_in_suites, items))  # a claim is, even of a topic without a case here
    if recorded and not (option.collectonly or option.setuponly or option.setupplan):
        session.open_store()
        signal.signal(signal.SIGTERM, _terminated)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """The start of the output: the devices, the size of each depth, and the estimated duration."""
    session = config.stash.get(SESSION, None)
    if session is None or not session.plan.tests:
        return []
    return [*(session.plan.lines() if config.option.collectonly else ()), *session.outlook(), *session.resumed()]


def _in_suites(node: pytest.Item) -> bool:
    return node.path.resolve().is_relative_to(SUITES)


def _empty(item: pytest.Item) -> bool:
    """Whether this is pytest's placeholder for a test without parameters, such as findings when there are none."""
    mark = item.get_closest_marker("skip")
    return bool(mark and "empty parameter set" in str(mark.kwargs.get("reason", "")))


def _measure(item: pytest.Item) -> str:
    """The name of the item's measure; empty for a test without one."""
    return str(item.callspec.params.get("measure", "")) if _case(item) else ""  # type: ignore[attr-defined]


def _needs(item: pytest.Item) -> Needs | None:
    measure = MEASURES.get(_measure(item))
    return measure.NEEDS if measure else None


def _terminated(*_: object) -> None:
    """SIGTERM acts like Ctrl-C: the ranks end, and the finished measurements stay in the store."""
    raise KeyboardInterrupt("terminated")


def _case(item: pytest.Item) -> Case | None:
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
    return case if isinstance(case, Case) else None


@pytest.fixture
def plumbline(pytestconfig: pytest.Config) -> Session:
    """The session, whose lab measures, and which judges claims and findings."""
    return session_of(pytestconfig)


@pytest.fixture
def require(pytestconfig: pytest.Config, record_property: Callable[[str, object], None]) -> Any:
    """Passes, fails or skips by the worst of the measurements, and shows its figure. All figures become properties of
    the test, which ``--junitxml`` writes."""
    strict = bool(getattr(pytestconfig.option, "strict", False))  # pytest's own --strict: an absent engine fails
    consequences = {finding.id: finding.consequence for finding in session_of(pytestconfig).known}

    def decide(measurements: list[Measurement]) -> None:
        for found in measurements:
            figure = "no value" if found.value is None else f"{float(found.value):.12g} {found.unit}".rstrip()
            record_property(f"{found.measure}.{found.quantity}", f"{figure}, {found.verdict}")
        unknown = [measurement for measurement in measurements if "finding" not in measurement.detail]
        for measurement in unknown:
            if measurement.verdict in ("fail", "error"):
                pytest.fail(f"{measurement.measure} {measurement.quantity}: {measurement.reason}", pytrace=False)
        for measurement in unknown:
            change = measurement.detail.get("baseline", {})
            if change.get("verdict") == "regressed":
                named = f"{measurement.measure} {measurement.quantity}: regressed since {_runs(change['runs'])}"
                pytest.fail(f"{named}: {change['reason']}", pytrace=False)
        found = worst(unknown or measurements)
        if found.verdict == "skipped" and strict and "not installed" in found.reason:
            pytest.fail(found.reason, pytrace=False)
        if unknown and found.verdict != "pass":
            pytest.skip(f"{found.verdict}: {found.reason}")
        for measurement in measurements:
            if name := measurement.detail.get("finding"):
                pytest.xfail(f"{measurement.quantity}: {name}: {consequences[name]}")

    return decide


def _runs(ids: list[str]) -> str:
    return f"run {ids[0]}" if len(ids) == 1 else f"the {len(ids)} runs from {ids[0]} to {ids[-1]}"


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Any:
    """Hands the step times of a measure, if it took some, to pytest-benchmark."""
    node = request.node
    if not node.config.pluginmanager.has_plugin("benchmark"):
        return lambda measurements: None
    timer = ReplayClock()
    case: Case = node.callspec.params["case"]
    group = f"{case.topic} {case.topology} {case.workload.name} {case.workload.dtype}"
    node.add_marker(pytest.mark.benchmark(timer=timer, group=group))

    def hand(measurements: list[Measurement]) -> None:
        if seconds := measurements[0].detail.get("samples"):
            facts = {"measure": measurements[0].measure, "case": case.id, "verdict": measurements[0].verdict}
            play(request.getfixturevalue("benchmark"), timer, seconds, facts)

    return hand


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """A run is finished once the loop has ended: Ctrl-C, ``-x`` and errors leave it by an exception. Signals are
    ignored while ranks and run are closed: a second one would leave both open."""
    ours = session_of(session.config)
    try:
        done = yield
    except BaseException:
        _ignore_signals(ours)
        raise
    ours.status = "finished"
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Prints progress in a long run each time the topic or topology changes."""
    case = _case(item)
    if case is not None and SESSION in item.config.stash:
        session = item.config.stash[SESSION]
        if session.known_already(_measure(item), case):
            session.replayed += 1
        else:
            _progress(item, session, case)
    return (yield)


_Place = pytest.StashKey[tuple[str, ...]]()


def _progress(item: pytest.Item, session: Session, case: Case) -> None:
    timed = "timed rounds" if _needs(item) is Needs.QUIET else "checked runs"
    place = (case.topic, str(case.topology), timed)
    if item.config.stash.get(_Place, None) != place:
        item.config.stash[_Place] = place
        reporter = item.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            spent, done = time.monotonic() - session.started, session.done + session.replayed
            left = spent / session.done * (len(session.plan.tests) - done) if session.done else None
            text = f"{' · '.join(place)} · {done} of {len(session.plan.tests)}"
            text += f" · about {left / 60:.0f} min left" if left and left > 90 else ""
            reporter.ensure_newline()
            reporter.write_line(text, bold=True)
    reporter = item.config.pluginmanager.get_plugin("terminalreporter")
    session.tell_builds(case, _needs(item) is Needs.QUIET, reporter)
    session.done += 1


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """A signal may arrive where a frame has no line number; pytest asks for one, and would end as with an error."""
    excinfo.traceback = excinfo.traceback.filter(lambda entry: entry._rawentry.tb_lineno is not None)


def _ignore_signals(session: Session) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        session.handlers.setdefault(signum, signal.signal(signum, signal.SIG_IGN) or signal.SIG_DFL)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Closes the run and writes the report. An error here becomes a line of the summary and the exit code of an
    internal error: a missing report is never a success."""
    ours = session.config.stash.get(SESSION, None)
    if ours is None:
        return
    _ignore_signals(ours)
    status = "failed" if exitstatus == pytest.ExitCode.INTERNAL_ERROR else ours.status
    code = _attempt(ours, "the run was not closed", lambda: ours.close(status))
    for signum, handler in ours.handlers.items():
        signal.signal(signum, handler)
    if ours.tally:
        code = max(code, _attempt(ours, "no report", ours.report))
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and code:
        session.exitstatus = code


def _attempt(session: Session, without: str, action: Callable[[], None]) -> pytest.ExitCode:
    try:
        action()
    except KeyboardInterrupt:
        session.ends.append(f"{without}: interrupted")
        return pytest.ExitCode.INTERRUPTED
    except Exception as error:  # catch everything: pytest's summary must follow, and the figures are in the store
        from harness.store import StoreError, redact
        from reports.render import ReportError

        kind = "" if isinstance(error, StoreError | ReportError) else f"{type(error).__name__}: "
        session.ends.append(redact(f"{without}: {kind}{' '.join(str(error).split())}"))
        return pytest.ExitCode.INTERNAL_ERROR
    return pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = config.stash.get(SESSION, None)
    if session is None or not (session.tally or session.ends):
        return
    terminalreporter.section("plumbline")
    if tally := session.tally:
        terminalreporter.write_line(
            "measurements: " + ", ".join(f"{tally[v]} {v}" for v in reversed(VERDICTS) if tally[v])
        )
    for line in session.ends:
        terminalreporter.write_line(line)
