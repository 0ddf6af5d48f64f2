"""A store with a history that nobody measured, written in bulk."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from harness.spec import Case, Topology, Workload
from harness.store import Store
from harness.store.schema import writing
from harness.store.tables import RECORDS, RUNS

MACHINE = {"cpu": "Planted CPU", "cores": 2, "memory": 16 * 2**30, "gpus": []}
FIRST = datetime(2026, 9, 1, 1, tzinfo=UTC)
QUANTITIES = (
    ("parity", "gradient", "× floor", 1.02, None, 4.5),
    ("parity", "loss", "× floor", 0.7, None, 4.5),
    ("memory", "states", "B", 907_876.0, 907_776.0, 953_164.8),
    ("memory", "peak", "B", 1_500_000.0, None, None),
    ("traffic", "bytes", "B", 302_592.0, 302_592.0, 302_592.0),
    ("throughput", "step_time", "s", 0.0123, None, None),
)
FINDING = {
    "engine": "deepspeed",
    "kind": "wrong result",
    "title": "Gradients are <averaged> twice",
    "consequence": "Training goes on with half of the learning rate.",
    "cause": "A division too many.",
    "silent": True,
    "default": True,
    "seen": ["deepspeed 0.19.8"],
    "right": ["deepspeed 0.19.2"],
    "since": "0.19.3",
    "issue": "owner/name#12",
    "link": "https://github.com/owner/name/issues/12",
    "public": "reported",
    "needs": ["deepspeed"],
    "script": True,
}


def run_id(night: int) -> str:
    return f"{FIRST + timedelta(days=night):%Y%m%d-%H%M%S}-{night:06x}"


def environment(torch: str = "2.13.0", **more: Any) -> dict[str, Any]:
    packages = {"plumbline": "0.1.0", "torch": torch, "deepspeed": "0.19.8", "horovod": None}
    return {"python": "3.11.7", "platform": "Linux", **MACHINE, "commit": "c0ffee", "dirty": False} | {
        "packages": packages,
        "variables": {},
        **more,
    }


def cases(number: int) -> list[Case]:
    """``number`` of them, half of them of the reference."""
    engines = ("reference", "deepspeed")
    return [Case("zero", f"zero3_{n // 2}", engines[n % 2], Topology(dp=2), Workload(), *()) for n in range(number)]


def night(
    store: Store,
    number: int,
    some: list[Case],
    environment: Mapping[str, Any],
    failing: Mapping[str, str] | None = None,
    quantities: int = len(QUANTITIES),
    command: str = "pytest suites/ --topics zero --store sqlite:////home/me/a.db",
    status: str = "finished",
) -> str:
    """One run. ``failing``: the cases whose gradient is wrong, with their finding or an empty text."""
    run, started = run_id(number), FIRST + timedelta(days=number)
    recorded = started.isoformat(timespec="microseconds")
    rows = list(_rows(run, some, failing or {}, number, recorded, quantities))
    ended = (started + timedelta(minutes=9)).isoformat(timespec="microseconds")
    head = {"run": run, "command": command, "status": status, "started": recorded, "finished": ended}
    with writing(store.engine) as connection:
        connection.execute(RUNS.insert(), [{**head, "environment": dict(environment)}])
        if rows:
            connection.execute(RECORDS.insert(), rows)
    return run


def _rows(
    run: str, some: list[Case], failing: Mapping[str, str], number: int, recorded: str, quantities: int
) -> Iterator[dict[str, Any]]:
    for case in some:
        names = {
            "run": run,
            "case": case.id,
            "topic": case.topic,
            "variant": case.variant,
            "engine": case.engine,
            "topology": str(case.topology),
            "workload": case.workload.name,
            "dtype": case.workload.dtype,
            "device": "cpu",
            "recorded": recorded,
            "direction": "lower",
        }
        for place in range(quantities):
            measure, quantity, unit, value, law, bound = QUANTITIES[place % len(QUANTITIES)]
            more = place // len(QUANTITIES)
            wrong = (measure, quantity) == ("parity", "gradient") and case.id in failing
            value = 50.0 if wrong else value * (1 + 0.01 * ((number * 7 + place) % 5 - 2)) if bound is None else value
            detail: dict[str, Any] = {"finding": failing[case.id]} if wrong and failing[case.id] else {}
            if measure == "throughput":
                samples = [value * (1 + 0.01 * (n % 3 - 1)) for n in range(10)]
                detail |= {"samples": samples, "minimum_detectable_effect": 0.021, "low": 0.012, "high": 0.013}
            yield names | {
                "measure": measure,
                "quantity": f"{quantity} {more}" if more else quantity,
                "unit": unit,
                "value": value,
                "law": law,
                "bound": bound,
                "verdict": "fail" if wrong else "pass",
                "reason": "out of its bound" if wrong else "within its bound",
                "detail": detail,
            }
    if not quantities:
        return
    about = {"value": None, "unit": "", "law": None, "bound": None, "verdict": "pass", "direction": "lower"}
    about |= {"topology": "dp1", "workload": "tiny", "dtype": "fp32", "device": "cpu", "recorded": recorded}
    about |= {"run": run, "engine": ""}
    for topic, measure, quantity, detail in (
        ("findings", "finding", "planted_average", FINDING),
        ("zero", "card", "card", {"title": "ZeRO", "sources": [], "variants": {}, "engines": ["deepspeed"]}),
        ("zero", "claim", "a_claim", {"text": "half the memory", "source": "A 2020, §1", "status": "reproduced"}),
    ):
        yield about | {
            "case": f"{topic}--dp1-fp32",
            "topic": topic,
            "variant": topic,
            "measure": measure,
            "quantity": quantity,
            "reason": quantity,
            "detail": detail,
        }
