"""The pytest plugin: options, cases as parameters, order, outcome and summary. Everything else is the Lab's."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.measures import MEASURES
from harness.options import OPTIONS
from harness.replay import ReplayClock, play
from harness.session import Session
from harness.spec import VERDICTS, Case, Finding, Needs
from harness.spec.finding import worst

SESSION = pytest.StashKey[Session]()
HYPOTHESIS = "hypothesispytest"  # its pytest plugin's name


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("plumbline", "Plumbline: engines against references")
    for name, keywords in OPTIONS.items():
        group.addoption(name, **keywords)


def pytest_configure(config: pytest.Config) -> None:
    for name, measure in MEASURES.items():
        config.addinivalue_line("markers", f"{name}: select a measure. {(measure.__doc__ or '').strip()}")
    config.addinivalue_line("markers", "gpu: select cases whose engine needs one")
    config.addinivalue_line("markers", "case(topic, variant, engine, ...): select exact cases, as in case(engine='x')")


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


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    note = config.stash[SESSION].note if SESSION in config.stash else ""
    return [note] if note else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``measure`` and ``case``, ``claim`` and ``waiver`` are parameters of the suites' tests."""
    if Path(metafunc.module.__file__ or "").parent.name != "suites":
        return
    session = session_of(metafunc.config)
    if "case" in metafunc.fixturenames:
        marks = {case.id: _marks(session, case) for case in session.cases}
        found = [
            pytest.param(
                measure, case, id=f"{measure}-{case.id}", marks=[getattr(pytest.mark, measure), *marks[case.id]]
            )
            for measure, case in session.measured()
        ]
        metafunc.parametrize(("measure", "case"), found)
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
    return marks


def pytest_itemcollected(item: Any) -> None:
    """pytest-benchmark's options, say ``--benchmark-only``, go by who uses its fixture."""
    if _measure(item) == "throughput":
        item.fixturenames = [*item.fixturenames, "benchmark"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Untimed first, by topology and engine, those last whose engine compiles something; then timed blocks; the ledger
    last. What was deselected is not a peer."""
    if SESSION not in config.stash:
        return
    session = config.stash[SESSION]
    items[:] = [item for item in items if not _empty(item)]
    ours = [item for item in items if _case(item)]
    session.selected = list(dict.fromkeys(case for item in ours if (case := _case(item))))
    session.timed = [c for item in ours if _measure(item) == "throughput" and (c := _case(item))]
    session.total = len(ours)
    session.oracles = any(_needs(item) is Needs.ORACLE for item in ours)
    places = {case.id: index for index, case in enumerate(session.cases)}

    def key(item: pytest.Item) -> tuple[Any, ...]:
        case = _case(item)
        if case is None:
            return (2,) if Path(str(item.path)).parent.name == "suites" else (0,)
        if _needs(item) is Needs.QUIET:
            return 1, case.topic, case.topology, places[case.id]
        late = bool(session.operators(case))  # they are compiled meanwhile
        return 0, late, case.topic, case.topology, case.engine, case.workload.name, places[case.id]

    items.sort(key=key)
    checked = [item for item in items if _needs(item) in (Needs.ORACLE, Needs.CHECKED)]
    session.checked = list(dict.fromkeys(case for item in checked if (case := _case(item))))
    if ours and not config.option.collectonly:
        session.open_store()
        signal.signal(signal.SIGTERM, _terminated)


def _empty(item: pytest.Item) -> bool:
    """pytest's stand-in for a test without parameters, say of waivers where there are none."""
    mark = item.get_closest_marker("skip")
    return bool(mark and "empty parameter set" in str(mark.kwargs.get("reason", "")))


def _measure(item: pytest.Item) -> str:
    """Its name; empty for a test that takes none."""
    return str(item.callspec.params.get("measure", "")) if _case(item) else ""  # type: ignore[attr-defined]


def _needs(item: pytest.Item) -> Needs | None:
    measure = MEASURES.get(_measure(item))
    return measure.NEEDS if measure else None


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


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Any:
    """Hands the step times, of a measure that took some, to pytest-benchmark."""
    node = request.node
    timer = ReplayClock()
    case: Case = node.callspec.params["case"]
    group = f"{case.topic} {case.topology} {case.workload.name} {case.workload.dtype}"
    node.add_marker(pytest.mark.benchmark(timer=timer, group=group))

    def hand(findings: list[Finding]) -> None:
        if seconds := findings[0].detail.get("samples"):
            play(request.getfixturevalue("benchmark"), timer, seconds, {"case": case.id})

    return hand


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Says where a long run stands each time the topic or topology changes."""
    case = _case(item)
    if case is not None and SESSION in item.config.stash:
        _progress(item, item.config.stash[SESSION], case)
    return (yield)


_Place = pytest.StashKey[tuple[str, ...]]()


def _progress(item: pytest.Item, session: Session, case: Case) -> None:
    timed = "timed rounds" if _needs(item) is Needs.QUIET else "checked runs"
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
    session.tell_builds(case, item.config.pluginmanager.get_plugin("terminalreporter"))
    session.done += 1


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """A signal may come where a frame is at no line, and pytest, which asks for one, would end as with an error."""
    excinfo.traceback = excinfo.traceback.filter(lambda entry: entry._rawentry.tb_lineno is not None)


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
