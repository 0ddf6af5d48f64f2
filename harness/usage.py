"""Usage errors, reported in one line before anything runs: invalid option values, and plugins that break a session."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest


class Refused(NamedTuple):
    """An option of another plugin, by the name that pytest stores it under."""

    name: str
    option: str
    why: str


ONE_PROCESS = "the suites start ranks of their own and compare cases within one process"
ONCE = "a case is measured once a session, so a repetition would return the same figures"
REFUSED = (
    Refused("tx", "-n or --tx (pytest-xdist)", ONE_PROCESS),
    Refused("forked", "--forked (pytest-forked)", ONE_PROCESS),
    Refused("reruns", "--reruns (pytest-rerunfailures)", ONCE),
    Refused("count", "--count (pytest-repeat)", ONCE),
)
NONE = {"count": 1}  # the value that turns an option off, where that is not empty or zero


def refuse_plugins(config: pytest.Config) -> None:
    """Rejects options of other plugins that would run half a session, or return the same result again."""
    for name, option, why in REFUSED:
        value = getattr(config.option, name, None)
        if value and value != NONE.get(name):
            raise pytest.UsageError(f"{option} does not work with the suites: {why}; leave it out")


def names(config: pytest.Config, option: str) -> tuple[str, ...]:
    """The names, separated by commas, that were given to the option; empty if it was left out."""
    given = config.getoption(option)
    if given is None:
        return ()
    parts = [given] if Path(given).is_file() else given.split(",")  # the name of a workload file may contain a comma
    found = tuple(part.strip() for part in parts)
    if not all(found):
        what = "an empty name" if any(found) else "no name"
        raise pytest.UsageError(f"{option} {given!r} has {what}; separate names by commas, or leave it out")
    if twice := next((name for name in found if found.count(name) > 1), ""):
        raise pytest.UsageError(f"{option} {given!r} names {twice} twice; name it once")
    return found


def place(config: pytest.Config, option: str, default: str) -> str:
    """A path or URL."""
    given = config.getoption(option)
    if given is not None and not given.strip():
        raise pytest.UsageError(f"{option} is empty; give a path or URL, or leave it out for {default}")
    return str(given or default)


def count(config: pytest.Config, option: str, least: int) -> int | None:
    given: int | None = config.getoption(option)
    if given is not None and given < least:
        raise pytest.UsageError(f"{option} must be at least {least}, not {given}")
    return given


def seconds(config: pytest.Config, option: str, default: float) -> float:
    given = config.getoption(option)
    if given is not None and not (math.isfinite(given) and given > 0):
        raise pytest.UsageError(f"{option} must be a number of seconds above 0, not {given:g}")
    return default if given is None else float(given)
