"""A run in short: what the index, the badges and the feeds say of it. It is published as ``run.json``."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from harness.store import Store
from reports.site import source

Record = Mapping[str, Any]
NOISE = "minimum_detectable_effect"  # of a timed case: what its own rounds differ by, the same against the same
LOOK_BACK = 30  # runs in which the last verdict of a figure is looked up


def summary(store: Store, run: source.Run, records: Sequence[Record], earlier: Sequence[source.Run]) -> dict[str, Any]:
    """``earlier``: the runs before this one, the newest first."""
    figures = [record for record in records if record["measure"] not in source.NOT_FIGURES]
    tally: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    shown: dict[str, dict[str, None]] = defaultdict(dict)
    for record in figures:
        tally[record["topic"]][record["engine"]][record["verdict"]] += 1
        if finding := (record["detail"] or {}).get("finding"):
            shown[finding][record["case"]] = None
    noise = [value for record in figures if (value := (record["detail"] or {}).get(NOISE)) is not None]
    return {
        "run": run.run,
        "command": run.command,
        "status": run.status,
        "started": run.started,
        "finished": run.finished,
        "hardware": run.machine,
        "environment": dict(run.environment),
        "records": len(figures),
        "cases": len({record["case"] for record in figures}),
        "tally": {topic: {engine: dict(counts) for engine, counts in row.items()} for topic, row in tally.items()},
        "noise": {"median": statistics.median(noise), "largest": max(noise), "timed": len(noise)} if noise else None,
        "shown": {finding: list(cases) for finding, cases in shown.items()},
        "new": new(store, run, figures, earlier),
        "findings": any(record["measure"] == "finding" for record in records),
        "claims": sorted({record["topic"] for record in records if record["measure"] == "claim"}),
    }


def new(
    store: Store, run: source.Run, figures: Sequence[Record], earlier: Sequence[source.Run]
) -> list[dict[str, str]]:
    """The failures that the last run before it on the same hardware that judged the same figure did not have."""
    failed = {(r["case"], r["measure"], r["quantity"]): r for r in figures if r["verdict"] == "fail"}
    before = [each.run for each in earlier if each.machine == run.machine][:LOOK_BACK]
    last: dict[tuple[str, str, str], str] = {}
    for name in before:
        if last.keys() >= failed.keys():
            break
        for key, verdict in source.verdicts(store, name).items():
            if key in failed and verdict in ("pass", "fail"):
                last.setdefault(key, verdict)
    names = ("topic", "engine", "case", "measure", "quantity", "reason")
    return [
        {name: record[name] for name in names}
        | {"before": last.get(key, ""), "finding": (record["detail"] or {}).get("finding", "")}
        for key, record in failed.items()
        if last.get(key) != "fail"
    ]


def verdict_counts(summary: Mapping[str, Any]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in summary["tally"].values():
        for verdicts in row.values():
            counts.update(verdicts)
    return dict(counts)
