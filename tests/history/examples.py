"""Runs of a store, as nights leave them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import update

from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store
from harness.store.schema import writing
from harness.store.tables import RUNS

CASE = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())
BESIDE = replace(CASE, engine="reference")
HERE: dict[str, Any] = {"cpu": "EPYC", "cores": 8, "memory": 2**34, "gpus": [], "packages": {"deepspeed": "0.19.6"}}
ELSEWHERE = {**HERE, "cpu": "Xeon"}
UPGRADED = {**HERE, "packages": {"deepspeed": "0.19.7"}}
STATES = Measurement("memory", "states", 1e6, "B", "pass", "as promised", law=1e6, bound=1e6, direction="equal")
PEAK = Measurement("memory", "peak", 2e6, "B", "pass", "the peak of a step")
BYTES = Measurement("traffic", "bytes", 4096.0, "B", "pass", "as promised", law=4096.0)
GRADIENT = Measurement("parity", "gradient", 0.5, "× floor", "pass", "within the bound", bound=4.5)


def stepping(seconds: float, beside: Mapping[str, float] | None = None, noise: float = 0.01) -> Measurement:
    """A step time with the detail that :mod:`harness.judge.speed` gives it; ``beside``: seconds of other engines."""
    ratios = {name: seconds / other for name, other in (beside or {}).items()}
    detail = {
        "samples": [seconds * (1 + noise * (step % 3 - 1) / 10) for step in range(14)],
        "rounds": 7,
        "low": seconds * (1 - noise / 2),
        "high": seconds * (1 + noise / 2),
        "minimum_detectable_effect": noise,
        "ratios": ratios,
        "ratio_intervals": {name: [ratio * (1 - noise / 2), ratio * (1 + noise / 2)] for name, ratio in ratios.items()},
    }
    return Measurement("throughput", "step_time", seconds, "s", "pass", "timed", detail=detail)


def night(
    store: Store,
    *measurements: Measurement,
    case: Case = CASE,
    environment: Mapping[str, Any] = HERE,
    started: str = "",
    more: Mapping[Case, list[Measurement]] | None = None,
) -> str:
    """A finished run with these measurements. ``started``: another time than now, UTC."""
    run = store.begin(environment, "pytest suites")
    store.add(run, case, "cpu", measurements)
    for other, found in (more or {}).items():
        store.add(run, other, "cpu", found)
    store.finish(run, "finished")
    if started:
        with writing(store.engine) as connection:
            connection.execute(update(RUNS).where(RUNS.c.run == run).values(started=f"{started}+00:00"))
    return run
