"""Two selections of runs: the figures that changed, and what differs between their environments."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness.history.environments import differences
from harness.history.model import Change, Comparison
from harness.history.series import ABOUT_RUNS, environments, machine
from harness.judge.change import BAD, UNREPEATABLE, Figure, Judged, Sample, judge, spread
from harness.spec import Case, Measurement
from harness.store import Store, StoreError

Key = tuple[str, str, str]  # case, measure, quantity
Record = Mapping[str, Any]

WORST_FIRST = ("regressed", "inconclusive", "gone", "new", "improved", "same")


class Earlier:
    """The figures of some runs, ready to judge later ones."""

    def __init__(self, store: Store, runs: Sequence[str]) -> None:
        listed = environments(store)
        self.runs = tuple(runs)
        self.figures = figures(store, runs)
        self.machines = {machine(run, listed[run]) for run in runs}
        self._bad = {key[:2] for key, figure in self.figures.items() if figure.verdict in BAD}
        self._measured = {key[:2] for key in self.figures}
        self._family = self._families()

    def change(self, key: Key, after: Figure, where: str) -> Change:
        """``where``: the machine on which the later figure was taken."""
        _, measure, quantity = key
        before = self.figures.get(key)
        if before is None:
            return _change(key, None, after, self._new(key, after))
        family = self._family.get((measure, quantity, after.engine), 0.0)
        return _change(key, before, after, judge(measure, quantity, before, after, family, self.machines == {where}))

    def noted(self, case: Case, measurement: Measurement, where: str) -> dict[str, Any]:
        """For a session: the change of a measurement, as a note in its detail; empty if the runs have no figure."""
        key = (case.id, measurement.measure, measurement.quantity)
        if key not in self.figures:
            return {}
        now = _figure([{**vars(measurement), "topic": case.topic, "engine": case.engine}])
        found = self.change(key, now, where)
        return {"baseline": {"runs": list(self.runs), "verdict": found.verdict, "reason": found.reason}}

    def _new(self, key: Key, after: Figure) -> Judged:
        """A new figure is a regression where a measure fails that did not."""
        if after.verdict in BAD and key[:2] in self._measured - self._bad:
            return Judged("regressed", f"{after.verdict}, which did not occur before: {after.reason}")
        return Judged("new", f"{after}, {after.verdict}; not measured before")

    def _families(self) -> dict[tuple[str, str, str], float]:
        found: dict[tuple[str, str, str], float] = {}
        for key, figure in self.figures.items():
            if key[1:] in UNREPEATABLE:
                name = (key[1], key[2], figure.engine)
                found[name] = max(found.get(name, 0.0), spread(sample.value for sample in figure.samples))
        return found


def compare(
    store: Store,
    before: Sequence[str],
    after: Sequence[str],
    topics: Collection[str] = (),
    engines: Collection[str] = (),
) -> Comparison:
    """The worst change first. Raises :class:`harness.store.StoreError`."""
    listed = environments(store)
    if unknown := [run for run in (*before, *after) if run not in listed]:
        raise StoreError(f"store {store.place}: has no run {unknown[0]!r}")
    earlier, later = Earlier(store, before), figures(store, after)
    machines = sorted({machine(run, listed[run]) for run in after})
    where = machines[0] if len(machines) == 1 else ""

    def asked(each: Figure) -> bool:
        return (not topics or each.topic in topics) and (not engines or each.engine in engines)

    changes = [earlier.change(key, each, where) for key, each in later.items() if asked(each)]
    for key, each in earlier.figures.items():
        if key not in later and asked(each):
            changes.append(_change(key, each, None, Judged("gone", f"was {each}, {each.verdict}; not measured now")))
    apart = differences((listed[run] for run in before), (listed[run] for run in after))
    return Comparison(tuple(before), tuple(after), tuple(sorted(changes, key=_badness)), apart)


def figures(store: Store, runs: Sequence[str]) -> dict[Key, Figure]:
    """All figures of these runs, the oldest run first. What was not measured is no figure."""
    found: dict[Key, list[Record]] = {}
    for run in runs:
        for record in store.records(run):
            if record["measure"] not in ABOUT_RUNS and record["verdict"] != "skipped":
                found.setdefault((record["case"], record["measure"], record["quantity"]), []).append(record)
    return {key: _figure(records) for key, records in found.items()}


def _figure(records: Sequence[Record]) -> Figure:
    samples = tuple(Sample(each["value"], each["detail"]) for each in records if each["value"] is not None)
    about = {name: records[-1][name] for name in ("unit", "direction", "verdict", "reason", "law", "topic", "engine")}
    return Figure(samples=samples, **about)


def _change(key: Key, before: Figure | None, after: Figure | None, judged: Judged) -> Change:
    case, measure, quantity = key
    some = after or before
    assert some is not None
    first, last = (None if each is None else each.value for each in (before, after))
    bounds = (judged.low, judged.high)
    return Change(case, measure, quantity, some.unit, first, last, *bounds, judged.verdict, judged.reason)


def _badness(change: Change) -> tuple[int, float, str, str, str]:
    size = abs(math.log(change.after / change.before)) if change.before and change.after else math.inf
    name = (change.case, change.measure, change.quantity)
    return WORST_FIRST.index(change.verdict), -size, *name
