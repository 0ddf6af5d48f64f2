"""A night from its beginning, or from where it was killed, to its notification."""

import signal
from collections.abc import Mapping
from datetime import UTC, datetime

from harness.nightly.config import Config
from harness.nightly.lock import lock
from harness.nightly.night import Night, Result, load, state
from harness.nightly.notify import tell
from harness.nightly.steps import STEPS, Step, take
from harness.nightly.suites import arguments, shown
from harness.nightly.summary import line
from harness.store import Store

INTERRUPTED = 2


def nightly(config: Config, resume: bool = False, steps: Mapping[str, Step] = STEPS) -> int:
    """Runs the configured steps, tells of them, and returns the exit code. ``resume``: goes on with a night that was
    killed, if there is one."""
    store = Store.open(config.store)
    with lock(store):
        night = _begun(config, store, resume)
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            interrupted = _steps(night, steps)
            found = tell(night)
        finally:
            signal.signal(signal.SIGTERM, before)
        suites = night.result("suites")
        if interrupted or (suites and suites.state == "interrupted"):
            print(f"nightly: not finished; plumbline nightly {config.path} --resume does what is left", flush=True)
            # Steps after suites that did not end told of a part of the run.
            whole = suites is None or suites.state != "interrupted"
            night.results = [r for r in night.results if whole and r.state != "interrupted" and r.name in steps]
            night.save()
        else:
            state(night.folder).unlink(missing_ok=True)
    code: int = found["exit_code"]
    print(f"nightly: {found['status']}: {night.folder / 'summary.md'}", flush=True)
    return code


def _begun(config: Config, store: Store, resume: bool) -> Night:
    night = _new(config, store)
    try:
        night.folder.mkdir(parents=True, exist_ok=True)
        left = load(config, store) if resume else None
        if left is None:
            (night.folder / "log.txt").write_text("")
    except OSError as error:
        raise ValueError(f"{config.path.name}: folder {night.folder}: {error.strerror}") from None
    if left is not None:
        if left.command != night.command:
            raise ValueError(f"{config.path.name}: [suites] changed since the night that was not finished")
        print(f"nightly: goes on with the night of {left.started[:16].replace('T', ' ')} UTC", flush=True)
        return left
    if state(night.folder).exists():
        why = "is older than a day" if resume else "would go on with --resume"
        print(f"nightly: the last night was not finished and {why}; this is a new one", flush=True)
    night.save()
    return night


def _new(config: Config, store: Store) -> Night:
    known = [run["run"] for run in store.runs()]
    command = shown(arguments(config.folder, config.store, config.suites.arguments()))
    return Night(config, store, command, datetime.now(UTC).isoformat(timespec="seconds"), known)


def _steps(night: Night, steps: Mapping[str, Step]) -> bool:
    """Takes the steps that are left; true if a signal came between."""
    for name in [name for name in steps if name in night.config.steps]:
        if night.result(name) is not None:
            continue
        try:
            result = take(night, name, steps)
        except KeyboardInterrupt:
            night.results.append(Result(name, "interrupted", "a signal ended the night", INTERRUPTED))
            print(line(night.results[-1]), flush=True)
            return True
        night.results.append(result)
        print(line(result), flush=True)
        night.save()
    return False


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt("terminated")
