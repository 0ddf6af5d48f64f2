"""The command that reproduces a case: the run's own choice of work, and of it this one case."""

import argparse
import shlex
from pathlib import PurePath

from harness.options import OPTIONS

PLACES = ("--store", "--report")  # where results go; every other option may decide which cases there are
SUITES = "suites/"


def repeated(command: str) -> str:
    """``pytest suites/`` with those options of ``command``, the run's, that choose work, quoted for a shell.

    A case may exist by these alone: a workload of one's own, an engine that was added, a depth.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, keywords in OPTIONS.items():
        parser.add_argument(name, action=keywords.get("action", "store"))
    try:
        options, rest = parser.parse_known_args(shlex.split(command)[1:])
    except (ValueError, argparse.ArgumentError):  # no command line that a session began with
        return f"pytest {SUITES}"
    words = ["pytest", *(dict.fromkeys(folder for word in rest if (folder := _suites(word))) or [SUITES])]
    for name in OPTIONS:
        value = getattr(options, name[2:].replace("-", "_"))
        if name in PLACES or value in (None, False):
            continue
        for one in value if isinstance(value, list) else [value]:
            words += [name] if one is True else [name, one]
    return " ".join(_quoted(word) for word in words)


def reproducing(repeated: str, case: str) -> str:
    """``repeated`` for this case alone: the bracket, which ends a test's name, leaves out ids that go on after it."""
    return f"{repeated} -k {shlex.quote(case + ']')}"


def _suites(word: str) -> str:
    """The folder of the suites, if the word of a command line names it or a file in it."""
    named = word.partition("::")[0]
    path = PurePath(named)
    if word.startswith("-") or "suites" not in (path.name, path.parent.name):
        return ""
    return named if path.name == "suites" else str(path.parent)


def _quoted(word: str) -> str:
    """A leading ``~`` stays open to the shell, for which alone it means the home folder."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)
