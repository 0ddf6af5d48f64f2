"""The night's first step: the suites, in a process of their own, and the failures that they leave."""

import datetime
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from signal import SIGTERM
from typing import Any

from harness.measures import MEASURES
from harness.nightly import quarantine
from harness.nightly.night import BROKE, Night, Result
from harness.plugin import SUITES
from harness.run.infrastructure import RETRIES, attempts, due, signature
from harness.spec.command import on_parents_death
from harness.store import command
from harness.store.resume import selection

PATIENCE = 120.0  # seconds that the suites have to close their run when the night is told to end
TAIL = 200  # lines of output that may tell why the suites broke
# How the suites tell that they broke, rather than a case.
BROKEN = ("INTERNALERROR> ", "ERROR: ", "the run was not closed: ", "no report: ")
ENDS = {
    2: "the suites were interrupted",
    3: "the suites broke",
    4: "the suites refused their options",
    5: "no case matches the options of the suites",
}


def arguments(night_folder: str, store: str, options: Sequence[str]) -> list[str]:
    """The suites' arguments, without those of a run that goes on."""
    outputs = [f"--store={store}", f"--report={night_folder}/report", f"--junitxml={night_folder}/junit.xml"]
    return [str(SUITES), *options, *outputs]


def shown(given: Sequence[str]) -> str:
    """The command line as the store has it."""
    return command(["pytest", *given])


def suites(night: Night) -> Result:
    """Runs the suites, or what is left of them, and tries failures of the infrastructure again."""
    config = night.config
    given = arguments(config.folder, config.store, config.suites.arguments())
    junit = night.folder / "junit.xml"
    tried: list[str] = []  # failures for which the suites were run again
    broken: list[str] = []  # those that had ended the suites, rather than a case
    night.run = night.run or _run(night)
    _settle(night)
    while True:
        junit.unlink(missing_ok=True)
        night.save()
        code, tail = launch(night, [*given, *([f"--resume={night.run}"] if night.run else [])])
        night.run = night.run or _run(night)
        records = night.store.records(night.run) if night.run else []
        cause = _again(code, tail, records)
        if not cause or len(tried) == RETRIES:
            break
        tried.append(cause)
        broken += [cause] if code not in (0, 1) else []
        pause = config.retry_pause
        print(f"nightly: {cause}: trying again in {pause:g} s ({len(tried)} of {RETRIES})", flush=True)
        time.sleep(pause)
    return _judged(night, code, records, _failed_tests(junit), broken)


def _run(night: Night) -> str:
    """The run that the night has begun in the store: no other night writes there, and no other program has this
    command."""
    for run in night.store.runs():
        if run["run"] not in night.known and selection(run["command"]) == selection(night.command):
            return str(run["run"])
    return ""


def _settle(night: Night) -> None:
    """Waits until the suites of a night that was killed have closed their run."""
    deadline = time.monotonic() + PATIENCE
    while night.run and night.store.runs(night.run)[0]["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.2)


def launch(night: Night, given: list[str]) -> tuple[int, list[str]]:
    """The exit status and the end of the output, which also goes to the terminal and to the log."""
    tail: deque[str] = deque(maxlen=TAIL)
    child = subprocess.Popen(
        [sys.executable, "-m", "pytest", *given],
        cwd=night.config.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=partial(on_parents_death, SIGTERM),
    )
    assert child.stdout is not None
    with child, (night.folder / "log.txt").open("a", encoding="utf-8") as log:
        try:
            for line in child.stdout:
                print(line, end="", flush=True)
                log.write(line)
                log.flush()
                tail.append(line)
        except KeyboardInterrupt as interrupt:
            if interrupt.args:  # a signal for this process alone; Ctrl-C reaches the suites by itself
                child.terminate()
            try:
                child.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
    return child.returncode, list(tail)


def _again(code: int, tail: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str:
    """The failure of the infrastructure for which the suites are run again; empty if there is none."""
    if code in (0, 1):
        return next((signature(record["reason"]) for record in records if due(record)), "")
    if code not in (BROKE, 4):
        return ""
    broken = [line for line in tail if line.startswith(BROKEN)]
    return next((found for line in reversed(broken) if (found := signature(line.rstrip()))), "")


def _failed_tests(junit: Path) -> dict[str, str] | None:
    """Test → message of those that failed in the suites; None if the suites did not come to write them."""
    try:
        cases = ElementTree.parse(junit).getroot().iter("testcase")
    except (OSError, ElementTree.ParseError):
        return None
    found = {}
    for case in cases:
        for child in case:
            if child.tag in ("failure", "error"):
                found[case.get("name", "")] = (child.get("message") or child.text or "").partition("\n")[0]
    return found


def _judged(
    night: Night,
    code: int,
    records: Sequence[Mapping[str, Any]],
    failed: Mapping[str, str] | None,
    broken: Sequence[str],
) -> Result:
    taken = [record for record in records if record["measure"] in MEASURES]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in taken:
        if record["verdict"] in ("fail", "error") and "finding" not in record["detail"]:
            reason = f"{record['quantity']}: {record['reason']}".partition("\n")[0]
            key = (record["measure"], record["case"])
            found.setdefault(key, {"measure": key[0], "case": key[1], "verdict": record["verdict"], "reason": reason})
    known = {f"test_measure[{measure}-{case}]" for measure, case in found}
    for name, message in (failed or {}).items():  # of the ledger, and absent engines where they must be there
        if name not in known:
            found["", name] = {"measure": "", "case": name, "verdict": "fail", "reason": message}
    today = datetime.date.today()
    free, held = quarantine.split(found.values(), night.config.quarantine, today)
    # Suites that did not end cannot tell whether an entry matches a case.
    tests = {(record["measure"], record["case"]) for record in taken} if code in (0, 1) else None
    wrong = quarantine.problems(night.config.quarantine, tests, today)
    facts = {
        "exit": code,
        "counts": dict(Counter(record["verdict"] for record in taken)),
        "cases": len({record["case"] for record in taken}),
        "failures": free,
        "quarantined": held,
        "quarantine_problems": wrong,
        "retries": _retries(taken, broken, code),
    }
    failing = bool(free or wrong or (code == 1 and not held))
    if code < 0:
        return Result("suites", "interrupted", f"the suites were killed by signal {-code}", BROKE, facts=facts)
    if code not in (0, 1):
        state = "interrupted" if code == 2 else "broke"
        return Result("suites", state, ENDS.get(code, f"the suites ended with {code}"), code, facts=facts)
    line = f"{facts['cases']:,} cases: {len(free)} failures, {len(held)} in quarantine"
    line += f", {len(wrong)} entries of the quarantine are wrong" if wrong else ""
    return Result("suites", "failed" if failing else "ok", line, int(failing), facts=facts)


def _retries(records: Sequence[Mapping[str, Any]], broken: Sequence[str], code: int) -> list[dict[str, Any]]:
    """What was tried again because of the infrastructure, how often, and how it ended."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        if before := attempts(record):
            key = (record["measure"], record["case"])
            ends = signature(record["reason"]) if record["verdict"] == "error" else ""
            names = [each["signature"] for each in before]
            found.setdefault(
                key,
                {
                    "measure": key[0],
                    "case": key[1],
                    "signatures": [*names, *([ends] if ends else [])],
                    "attempts": len(before) + 1,
                    "verdict": record["verdict"],
                },
            )
    if broken:
        verdict = "pass" if code in (0, 1) else "error"
        whole = {"measure": "", "case": "the suites", "signatures": list(broken), "attempts": len(broken) + 1}
        found["", ""] = {**whole, "verdict": verdict}
    return list(found.values())
