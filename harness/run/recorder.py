"""The recorder marks the measurements of each case that a waiver covers, and stores them at once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from harness.spec import Case, Measurement
from harness.waivers import Waiver

Write = Callable[[Case, Sequence[Measurement]], None]


class Recorder:
    """``write`` is called with (case, measurements) after each measure, so that a killed session keeps its records."""

    def __init__(self, write: Write, waivers: Sequence[Waiver] = (), device: str = "cpu") -> None:
        self._write, self.waivers, self.device = write, tuple(waivers), device
        self.judged: dict[str, list[Measurement]] = {}

    def record(self, case: Case, measurements: Sequence[Measurement], notes: Mapping[str, Any]) -> list[Measurement]:
        """The measurements to store, with ``notes`` and waivers in their detail."""
        concluded = [each.but(detail={**each.detail, **self._waived(case, each), **notes}) for each in measurements]
        self._write(case, concluded)
        self.judged.setdefault(case.id, []).extend(concluded)
        return concluded

    def _waived(self, case: Case, measurement: Measurement) -> dict[str, str]:
        if measurement.verdict == "fail":
            for waiver in self.waivers:
                if not waiver.expired and waiver.about(case.id, measurement):
                    return {"waiver": f"{waiver.reason} ({waiver.versions}, until {waiver.expires})"}
        return {}

    def wrong(self, case: Case) -> bool:
        """Whether the case computes something else: its parity fails here, or is known to."""
        judged = any(f.measure == "parity" and f.verdict == "fail" for f in self.judged.get(case.id, []))
        return judged or any(w.measure == "parity" and w.matches(case.id) for w in self.waivers)

    def records(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """The measurements of some cases, in the form that a claim's check receives."""
        return [
            {
                "case": case.id,
                "topic": case.topic,
                "variant": case.variant,
                "engine": case.engine,
                "topology": str(case.topology),
                "workload": case.workload.name,
                "dtype": case.workload.dtype,
                "optimizer": case.workload.optimizer,
                **{name: getattr(measurement, name) for name in ("measure", "quantity", "value", "unit", "law")},
                "verdict": measurement.verdict,
                "detail": measurement.detail,
            }
            for case in cases
            for measurement in self.judged.get(case.id, [])
        ]

    def needed(self, waiver: Waiver, every: Sequence[Case], ran: Collection[str]) -> bool:
        """Whether the waiver's failure occurred. Some sessions cannot tell: one that did not run all covered cases (of
        ``every`` existing case), one that left a figure undecided, and one on GPUs if the waiver is not only for GPUs.
        In these the waiver must only match an existing case."""
        found = {f.verdict for case, measurements in self.judged.items() for f in measurements if waiver.about(case, f)}
        covered = [case for case in every if waiver.matches(case.id)]
        elsewhere = self.device != (waiver.device or "cpu")
        some = any(case.id not in ran for case in covered)
        undecided = "pass" not in found or found & {"inconclusive", "invalid", "error"}
        return bool(covered) if undecided or elsewhere or some else "fail" in found
