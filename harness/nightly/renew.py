"""Measures cases again that tonight's suites leave out and another PyTorch has measured: some nights after an upgrade,
the whole site is of one PyTorch."""

import itertools
import os
import shlex
from typing import Any

from harness.nightly.night import BROKE, Night, Result
from harness.nightly.suites import ENDS, launch
from harness.plugin import SUITES
from harness.store import hardware_key
from reports.commands import PLACES, repeated
from reports.site import source

MOST = 200  # cases of a night: its command line names them one by one
NONE = 5  # pytest's status if no case matches, as where all of them were removed since


def renew(night: Night) -> Result:
    """One run for each command that had measured such cases, with its options and on the same hardware."""
    old, torch = outdated(night)
    if not torch:
        return Result("renew", "ok", "the newest PyTorch of the store is not tonight's")
    chosen, codes = dict(list(old.items())[:MOST]), []
    by_command: dict[str, list[str]] = {}
    for case, command in chosen.items():
        by_command.setdefault(command, []).append(case)
    own = [word for word in night.config.suites.arguments() if word.partition("=")[0] in PLACES]
    for command, cases in by_command.items():
        words = itertools.dropwhile(lambda word: not word.startswith("--"), shlex.split(command))
        options = [os.path.expanduser(word) for word in words]
        named = f"-k={' or '.join(f'-{case}]' for case in cases)}"
        outputs = [f"--store={night.config.store}", f"--report={night.folder}/renewed"]
        codes.append(launch(night, [str(SUITES), *options, *own, named, *outputs])[0])
    left = len(outdated(night)[0])
    facts = {"torch": torch, "renewed": len(old) - left, "left": left}
    line = f"{len(old) - left} cases measured again under PyTorch {torch}, {left} left"
    broken = [code for code in codes if code not in (0, 1, NONE)]
    if broken:
        code = broken[0] if broken[0] in ENDS else BROKE
        return Result("renew", "broke", f"{line}; {ENDS.get(broken[0], f'status {broken[0]}')}", code, facts=facts)
    return Result("renew", "failed" if 1 in codes else "ok", line, int(1 in codes), facts=facts)


def outdated(night: Night) -> tuple[dict[str, str], str]:
    """The cases whose newest record is of tonight's hardware and another PyTorch, those of the newest runs first, with
    the command that measured them; and tonight's PyTorch, empty if the store has a newer one."""
    runs = {run["run"]: run for run in night.store.runs()}  # the newest first
    mine = runs[night.run]
    torch, hardware = _torch(mine), hardware_key(mine["environment"])
    if torch != source.newest([_torch(run) for run in runs.values() if _torch(run)]):
        return {}, ""
    places = {name: place for place, name in enumerate(runs)}
    heads = sorted(source.cases(night.store).items(), key=lambda head: (places[head[1].run], head[0]))
    found = {}
    for case, head in heads:
        run = runs[head.run]
        if _torch(run) != torch and _hardware(run) == hardware:
            found[case] = repeated(run["command"])
    return found, torch


def _torch(run: dict[str, Any]) -> str:
    return str((run["environment"].get("packages") or {}).get("torch") or "")


def _hardware(run: dict[str, Any]) -> str:
    try:
        return hardware_key(run["environment"])
    except ValueError:  # of another program
        return ""
