"""Reads the findings, and runs their scripts."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from harness.plugin import SUITES
from harness.spec.finding import DEVICES, KINDS, Finding, Symptom
from harness.spec.table import checked

FOLDER = SUITES / "findings"
STILL, GONE, UNKNOWN = "still there", "gone", "cannot be judged"
SECONDS = 120.0  # of a script
LINES = 3  # of a script's output that tell why it cannot be judged
RELEASE = re.compile(r"[\w.-]+ \d\S*")  # as deepspeed 0.19.8


def read(folder: Path = FOLDER) -> tuple[Finding, ...]:
    """All findings of a folder, ``<id>.toml`` each, in the order in which they are shown. A ValueError names the file,
    the field and the values that are allowed."""
    found = [_finding(path) for path in folder.glob("*.toml")]
    return tuple(sorted(found, key=lambda finding: (KINDS.index(finding.kind), finding.id)))


def _finding(path: Path) -> Finding:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    values = checked(Finding, table, path.name, given={"id": path.stem})
    if not re.fullmatch(r"[a-z0-9_]+", path.stem):
        raise ValueError(f"{path.name}: its name must be of a-z, 0-9 and _")
    if values["kind"] not in KINDS:
        raise ValueError(f"{path.name}: kind {values['kind']!r} is none of {', '.join(KINDS)}")
    if not values["seen"]:
        raise ValueError(f"{path.name}: seen is empty; name the versions in which it was seen")
    for release in (*values["seen"], *values.get("right", ())):
        if not RELEASE.fullmatch(release):
            raise ValueError(f"{path.name}: {release!r} is not written as deepspeed 0.19.8")
    if values.get("issue") and not re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", values["issue"]):
        raise ValueError(f"{path.name}: issue {values['issue']!r} is not written as owner/name#number")
    return Finding(**values | {"symptoms": tuple(_symptoms(path.name, values.get("symptoms", ())))})


def _symptoms(file: str, tables: list[Mapping[str, Any]]) -> Iterator[Symptom]:
    for number, table in enumerate(tables, start=1):
        place = f"{file}: symptom {number}"
        values = checked(Symptom, table, place)
        if values.get("device", "") not in DEVICES:
            raise ValueError(f"{place}: device {values['device']!r} is not {' or '.join(filter(None, DEVICES))}")
        if set(values["quantity"]) & set("*?["):
            raise ValueError(f"{place}: quantity {values['quantity']!r} is a pattern; name one quantity a symptom")
        if not (values.get("band") or values.get("says")):
            raise ValueError(f"{place} has neither a band nor what its reason says; one of the two is required")
        yield Symptom(**values)


class Checked(NamedTuple):
    """What a script says: still there, gone, or cannot be judged, and then why."""

    state: str
    reason: str = ""


def script(finding: Finding, folder: Path = FOLDER) -> Path | None:
    """The script that shows the finding without Plumbline, if there is one."""
    path = folder / f"{finding.id}.py"
    return path if path.exists() else None


def installed(finding: Finding) -> dict[str, str]:
    """The distributions in which the finding was seen, with their installed version; empty if they are not."""
    found = {}
    for release in finding.seen:
        name = release.split()[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def repaired(finding: Finding) -> bool:
    """Whether the finding is known to be gone in the versions that are installed."""
    here = {f"{name} {found}" for name, found in installed(finding).items()}
    return bool(here) and here <= set(finding.right)


def to_be_seen(known: Iterable[Finding], device: str) -> tuple[Finding, ...]:
    """The findings that a session on this device can show, with the symptoms that it can show. One that is gone in the
    installed versions is none of them: were it back, it would have to fail the run."""
    held = ((f, tuple(s for s in f.symptoms if s.device in ("", device))) for f in known if not repaired(f))
    return tuple(replace(finding, symptoms=symptoms) for finding, symptoms in held if symptoms)


def check(
    path: Path, seconds: float = SECONDS, python: str = sys.executable, environment: Mapping[str, str] | None = None
) -> Checked:
    """Runs a script apart from this process, its folder and its session; the script's ranks end with it. It is isolated
    from the user's packages and Python's variables, unless an ``environment`` is given, whose paths come first."""
    isolated = ["-I"] if environment is None else ["-P", "-s"]
    command = [python, *isolated, str(path)]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        _started(command, folder, environment) as process,
    ):
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Checked(UNKNOWN, f"it did not end within {seconds:g} s")
        finally:
            with suppress(ProcessLookupError):  # it left no rank
                os.killpg(process.pid, signal.SIGKILL)
    last = output.strip().splitlines()[-1:]
    raised = "Traceback (most recent call last):" in errors  # its exit status is 1, too
    # An engine's thread may abort the process at its end, after the answer.
    answers = {(1, STILL), (0, GONE), (-signal.SIGABRT, STILL), (-signal.SIGABRT, GONE)}
    if last and (process.returncode, last[0]) in answers and not raised:
        return Checked(last[0])
    told = [line.partition(": ")[2] for line in last if line.startswith(f"{UNKNOWN}: ")]
    if told and process.returncode == 2:  # the script itself says why
        return Checked(UNKNOWN, told[0])
    said = [line for text in (output, errors) for line in text.splitlines() if line.strip()]
    return Checked(UNKNOWN, f"exit status {process.returncode}: " + (" / ".join(said[-LINES:]) or "no output"))


def _started(command: list[str], folder: str, environment: Mapping[str, str] | None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
