"""The command that reproduces a case: the run's own options that choose work, and this one case."""

import argparse
import shlex
from pathlib import PurePath

from harness.options import OPTIONS

# Options for results, for a run beside another one, and for one's own machines; every other one may change the cases.
PLACES = (
    *("--store", "--report", "--single-file", "--baseline", "--resume"),
    *("--hosts", "--head", "--remote-shell", "--slurm"),
)
SUITES = "suites/"


def repeated(command: str) -> str:
    """``pytest suites/`` with the options that choose work from the run's ``command``, quoted for a shell.

    A case may exist only with these options: a user's own workload, an added engine, a depth.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, keywords in OPTIONS.items():
        parser.add_argument(name, action=keywords.get("action", "store"))
    try:
        options, rest = parser.parse_known_args(shlex.split(command)[1:])
    except (ValueError, argparse.ArgumentError):  # not a command line that started a session
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
    """``repeated`` for this case alone. In a test's name a hyphen precedes the case, and a bracket follows it; both
    exclude longer ids, as ``dr_grpo-…`` for ``grpo-…``."""
    return f"{repeated} -k={shlex.quote(f'-{case}]')}"


def _suites(word: str) -> str:
    """The folder of the suites, if this word of a command line names it or a file in it."""
    named = word.partition("::")[0]
    path = PurePath(named)
    if word.startswith("-") or "suites" not in (path.name, path.parent.name):
        return ""
    return named if path.name == "suites" else str(path.parent)


def _quoted(word: str) -> str:
    """A leading ``~`` stays unquoted, since the shell expands only an unquoted one to the home folder."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)
