"""The steps of a night, and how each is told. One that breaks, or does not exist here, keeps no other from running."""

import datetime
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from harness import catalog, findings
from harness.nightly import quarantine
from harness.nightly.night import BROKE, Night, Result
from harness.nightly.suites import suites
from harness.store import hardware_key, redact
from harness.store.resume import selection

Step = Callable[[Night], Result]


class Absent(Exception):
    """The step cannot be taken here; the text is the reason."""


def trend(night: Night) -> Result:
    """Change points for the worse over all nights. One that last night has told already does not fail this one."""
    series, find = _part("harness.history.series:series"), _part("harness.history.trend:trend")
    environments = {run["run"]: run["environment"] for run in night.store.runs()}
    found = [_alarm(alarm) for alarm in find(series(night.store), environments) if not alarm.improved]
    told = [alarm["series"] for alarm in _last_summary(night).get("alarms", ()) if isinstance(alarm, dict)]
    free, held = quarantine.split(found, night.config.quarantine, datetime.date.today())
    new = [alarm for alarm in free if alarm["series"] not in told]
    facts = {"alarms": [{**alarm, "new": alarm in new} for alarm in free], "quarantined": held}
    line = f"{len(new)} new alarms, {len(free) - len(new)} known ones, {len(held)} in quarantine"
    return Result("trend", "failed" if new else "ok", line, int(bool(new)), facts=facts)


def _alarm(alarm: Any) -> dict[str, Any]:
    series = alarm.series
    figure = {"measure": series.measure, "case": series.case, "quantity": series.quantity, "unit": series.unit}
    name = " ".join((series.case, series.measure, series.quantity, series.machine, alarm.run))
    level = {"run": alarm.run, "before": alarm.before, "after": alarm.after, "p": alarm.p}
    return {**figure, **level, "environment": _listed(alarm.environment), "series": name}


def compare(night: Night) -> Result:
    """Tonight beside the last night with the same options on the same hardware."""
    judge = _part("harness.history.compare:compare")
    before = _last_night(night)
    found = judge(night.store, [before], [night.run])
    changes = [asdict(change) for change in found.changes if change.verdict == "regressed"]
    free, held = quarantine.split(changes, night.config.quarantine, datetime.date.today())
    counts = Counter(change.verdict for change in found.changes)
    facts = {
        "before": before,
        "counts": dict(counts),
        "regressions": free,
        "quarantined": held,
        "environment": _listed(found.environment),
    }
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "nothing to compare"
    line = f"beside {before}: {told}" + (f"; {len(held)} in quarantine" if held else "")
    return Result("compare", "failed" if free else "ok", line, int(bool(free)), facts=facts)


def _last_night(night: Night) -> str:
    runs = night.store.runs()  # the newest first
    (mine,) = [run for run in runs if run["run"] == night.run]
    for run in runs[runs.index(mine) + 1 :]:
        whole = run["status"] == "finished" and run["records"]
        if whole and selection(run["command"]) == selection(mine["command"]) and _hardware(run) == _hardware(mine):
            return str(run["run"])
    raise Absent("no earlier night with these options on this hardware is finished")


def _hardware(run: Mapping[str, Any]) -> str:
    return hardware_key(run["environment"])


def _listed(environment: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {name: list(values) for name, values in environment.items()}


def check_findings(night: Night) -> Result:
    """Runs the findings' scripts, as ``plumbline findings --check`` does."""
    found = []
    for finding in findings.read():
        if path := findings.script(finding):
            state, reason = findings.check(path)
            print(f"nightly: {finding.id} {state}{f': {reason}' if reason else ''}", flush=True)
            found.append({"id": finding.id, "state": state, "reason": reason})
    counts = Counter(each["state"] for each in found)
    gone = [each["id"] for each in found if each["state"] == findings.GONE]
    line = ", ".join(f"{count} {state}" for state, count in counts.items())
    line += f": {', '.join(gone)}; their records must be changed" if gone else ""
    return Result("findings", "failed" if gone else "ok", line, int(bool(gone)), facts={"findings": found})


def renew(night: Night) -> Result:
    result: Result = _part("harness.nightly.renew:renew")(night)
    return result


def report(night: Night) -> Result:
    from reports.render import write

    path = write(night.store, night.run, night.folder / "report")
    return Result("report", "ok", str(path), facts={"report": str(path)})


def publish(night: Night) -> Result:
    """The site of all runs in the store."""
    make, known = _part("reports.site:publish"), findings.read()
    given = {finding.id: vars(finding) | {"link": finding.link} for finding in known}
    scripts = {finding.id: path.read_text("utf-8") for finding in known if (path := findings.script(finding))}
    seek = _part("harness.history.trend:sought")
    index = str(make(night.store, night.folder / "site", given, scripts, seek=seek).index)
    return Result("publish", "ok", index, facts={"site": index})


STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "suites": suites,
        "renew": renew,
        "trend": trend,
        "compare": compare,
        "findings": check_findings,
        "report": report,
        "publish": publish,
    }
)
RUN_NEEDED = ("renew", "trend", "compare", "report", "publish")


def take(night: Night, name: str, steps: Mapping[str, Step] = STEPS) -> Result:
    """The result of a step, which is never an exception but an interruption."""
    start = time.monotonic()
    try:
        if name in RUN_NEEDED and not night.run:
            raise Absent("the suites have begun no run")
        result = steps[name](night)
    except Absent as absent:
        result = Result(name, "skipped", str(absent))
    except Exception as error:  # catch everything: the other steps and the notification must follow
        with suppress(OSError), (night.folder / "log.txt").open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        kind = "" if _is_line(error) else f"{type(error).__name__}: "
        result = Result(name, "broke", redact(f"{kind}{' '.join(str(error).split())}"), BROKE)
    return replace(result, seconds=round(time.monotonic() - start, 3))


def _is_line(error: Exception) -> bool:
    """Whether the error is one of ours, whose message is a line for people."""
    return type(error).__module__.partition(".")[0] in ("harness", "reports")


def _part(target: str) -> Any:
    """A function of another part, which may not be installed or may need a library that is not."""
    try:
        return catalog.load(target)
    except ImportError as error:
        raise Absent(f"{error.name or target} is not installed") from None
    except AttributeError:
        raise Absent(f"this Plumbline has no {target}") from None


def _last_summary(night: Night) -> dict[str, Any]:
    """The summary of the night before; empty if there is none that can be read."""
    try:
        found = json.loads((night.folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
