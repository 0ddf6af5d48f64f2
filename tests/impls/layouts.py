"""The problems of a randomly drawn layout."""

from harness.run.lab import Lab
from harness.spec import Case, Measurement

# Among new layouts, one in some thousands has a floor that is too small by luck. This does not matter where floors are
# so low (1e-14, 1e-6): a real fault exceeds them by a factor of hundreds.
SAME = {"fp64": 1e-9, "fp32": 1e-4}


def wrong(lab: Lab, case: Case) -> list[str]:
    """The reasons of all that is not right, in parity and traffic; nothing may be skipped."""
    lab.runner.forget()  # a name does not tell all of a layout
    found = [*lab.measure("parity", case), *(lab.measure("traffic", case) if case.topology.world_size > 1 else [])]
    return [f"{case.id}: {f.reason}" for f in found if f.verdict != "pass" and not _same(case, f)]


def _same(case: Case, measurement: Measurement) -> bool:
    if measurement.measure == "traffic":  # some drawn parts are so small that they count as flags
        assert measurement.law is not None
        assert measurement.value is not None
        return 0 <= measurement.law - measurement.value <= measurement.detail.get("control", 0.0)
    return measurement.verdict == "fail" and measurement.detail.get("error", 1.0) < SAME.get(case.workload.dtype, 0.0)
