"""Runs the cases of a bundle again. Its command was written by somebody else: only names are taken from it."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.options import OPTIONS
from harness.submission.bundle import Bundle, BundleError

NAME = re.compile(r"[a-z0-9_.][A-Za-z0-9_.-]*", re.ASCII)  # no path, no option, no expression
VALUE = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.,]*", re.ASCII)
TAKEN = ("--workload", "--topologies", "--dtypes", "--depth", "--measures", "--ranks", "--gpus", "--case-timeout")
MOST = 200  # cases that a command line names one by one
FINE = (0, 1)  # of pytest: every case ran, and some may have failed


def arguments(bundle: Bundle) -> list[str]:
    """The options of ``plumbline run`` for the bundle's cases: topics, engines and cases from the records, the rest
    from the command. Code that the command names (an added engine, a workload's file) is never loaded."""
    figures = [record for record in bundle.records if record["engine"]]
    topics, engines, cases = (sorted({r[name] for r in figures}) for name in ("topic", "engine", "case"))
    for name in (*topics, *engines, *cases):
        if not NAME.fullmatch(name):
            raise BundleError(f"the bundle has the name {name!r}, which no case of Plumbline has; it is not run")
    if not cases:
        raise BundleError("the bundle has no figures of a case: there is nothing to run again")
    found = [f"--topics={','.join(topics)}", f"--engines={','.join(engines)}"]
    for name, value in _options(str(bundle.run["command"])).items():
        if VALUE.fullmatch(value) and not (name == "--workload" and value.endswith(".toml")):
            found.append(f"{name}={value}")
    if len(cases) <= MOST:
        found.append(f"-k={' or '.join(f'-{case}]' for case in cases)}")
    return found


def _options(command: str) -> dict[str, str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, keywords in OPTIONS.items():
        parser.add_argument(name, action=keywords.get("action", "store"))
    try:
        options, _ = parser.parse_known_args(shlex.split(command)[1:])
    except (ValueError, argparse.ArgumentError):
        return {}
    values: Mapping[str, Any] = vars(options)
    return {name: value for name in TAKEN if isinstance(value := values[name[2:].replace("-", "_")], str)}


def run(options: Sequence[str], store: str, report: Path) -> None:
    """Runs them in a process of their own, which shows its progress."""
    command = [sys.executable, "-m", "harness.cli", "run", *options, f"--store={store}", f"--report={report}"]
    done = subprocess.run(command)
    if done.returncode not in FINE:
        raise BundleError(f"the cases could not be run again: exit status {done.returncode} of {shlex.join(command)}")
