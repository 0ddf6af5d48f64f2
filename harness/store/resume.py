"""Continues a run that ended early, in the same environment and with the same options."""

import shlex
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, select

from harness.store import query
from harness.store.liveness import process
from harness.store.record import plain
from harness.store.schema import StoreError, shown, writing
from harness.store.tables import RECORDS, RUNS

OF_THE_PROCESS = ("process", "clock")  # facts of an environment that every session has anew
# Options that change nothing in the records: those with a value, and those without.
OUTPUTS = ("--resume", "--report", "--junitxml", "--junit-xml", "--basetemp", "--durations", "--tb", "--color")
FLAGS = ("-q", "-qq", "-v", "-vv", "-s", "-x", "--exitfirst", "-l", "--showlocals")


def resume(engine: Engine, run: str, environment: Mapping[str, Any], command: str) -> None:
    """Implements :meth:`Store.resume`."""
    now = plain(environment)
    with writing(engine) as connection:
        found = connection.execute(select(RUNS).where(RUNS.c.run == run).with_for_update()).mappings().first()
        if found is None:
            raise StoreError(f"{shown(engine.url)}: has no run {run!r}")
        if found["status"] == "running" and run not in query.killed(connection):
            raise StoreError(f"run {run} is still running, or ran on a machine from which this one hears nothing")
        if selection(found["command"]) != selection(command):
            raise StoreError(f"run {run} had other options; give the same ones: {found['command']}")
        if changed := changes(found["environment"], now):
            raise StoreError(f"run {run} began in another environment ({'; '.join(changed)}); start a new run")
        kept = {**found["environment"], "process": process()}
        values = {"status": "running", "finished": None, "environment": kept}
        connection.execute(RUNS.update().where(RUNS.c.run == run).values(**values))


def forget(engine: Engine, run: str, case: str, measure: str) -> None:
    """Implements :meth:`Store.forget`."""
    c = RECORDS.c
    with writing(engine) as connection:
        connection.execute(RECORDS.delete().where(c.run == run, c.case == case, c.measure == measure))


def selection(command: str) -> list[str]:
    """The words of a command line that decide what a run measures."""
    words = iter(shlex.split(command))
    kept = []
    for word in words:
        if word in OUTPUTS:
            next(words, None)
        elif word.partition("=")[0] not in OUTPUTS and word not in FLAGS:
            kept.append(word)
    return kept


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two environments, as ``torch: 2.12.1 → 2.13.0``."""
    ours, theirs = _flat(before), _flat(after)
    names = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    return [f"{name}: {ours.get(name)} → {theirs.get(name)}" for name in names]


def _flat(environment: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in environment.items():
        if name in OF_THE_PROCESS:
            continue
        if isinstance(value, Mapping):
            found.update(value)
        else:  # the last digits of memory change with the kernel
            found[name] = f"{round(value / 2**30)} GiB" if name == "memory" else value
    return found
