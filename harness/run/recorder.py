"""The recorder marks the measurements of each case that a finding covers, and stores them at once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from harness.run.earlier import Earlier
from harness.spec import Case, Finding, Measurement, Symptom

Write = Callable[[Case, Sequence[Measurement]], None]


class Recorder:
    """``write`` is called with (case, measurements) after each measure, so that a killed session keeps its records.
    ``earlier``: those of the session that this one continues. ``compared`` gives notes on a measurement's change since
    a baseline."""

    def __init__(
        self,
        write: Write,
        findings: Sequence[Finding] = (),
        device: str = "cpu",
        earlier: Earlier | None = None,
        compared: Callable[[Case, Measurement], Mapping[str, Any]] | None = None,
    ) -> None:
        self._write, self.findings, self.device, self._compared = write, tuple(findings), device, compared
        self.earlier = earlier or Earlier()
        self.judged: dict[str, list[Measurement]] = {}
        for (_, case), measurements in self.earlier.kept.items():
            self.judged.setdefault(case, []).extend(measurements)

    def record(self, case: Case, measurements: Sequence[Measurement], notes: Mapping[str, Any]) -> list[Measurement]:
        """The measurements to store, with ``notes`` and the id of the finding in their detail."""
        concluded = [self._explained(case, each.but(detail={**each.detail, **notes})) for each in measurements]
        if self._compared is not None:
            concluded = [each.but(detail={**each.detail, **self._compared(case, each)}) for each in concluded]
        self._write(case, concluded)
        self.judged.setdefault(case.id, []).extend(concluded)
        return concluded

    def _explained(self, case: Case, measurement: Measurement) -> Measurement:
        """A failure that a finding covers has its id; one that is outside of a band says so."""
        if measurement.verdict != "fail":
            return measurement
        near = []
        for finding in self.findings:
            for symptom in finding.symptoms:
                if symptom.covers(case.id, measurement):
                    return measurement.but(detail={**measurement.detail, "finding": finding.id})
                if symptom.about(case.id, measurement):
                    near.append(f"{finding.id}: {symptom}")
        if not near:
            return measurement
        size = "no size" if measurement.size is None else f"size {measurement.size:.4g}"
        reason = f"{measurement.reason}; {size}, which no finding covers; nearest {near[0]}"
        if case.workload.weights or case.workload.data:
            reason += (
                "; its band was measured on the suites' own work, and yours may well show the same fault otherwise"
            )
        return measurement.but(reason=reason)

    def wrong(self, case: Case) -> bool:
        """Whether the case computes something else: its parity fails here, or is known to."""
        judged = any(f.measure == "parity" and f.verdict == "fail" for f in self.judged.get(case.id, []))
        symptoms = (symptom for finding in self.findings for symptom in finding.symptoms)
        return judged or any(symptom.measure == "parity" and symptom.matches(case.id) for symptom in symptoms)

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

    def stale(self, finding: Finding, every: Sequence[Case], ran: Collection[str]) -> list[Symptom]:
        """The symptoms that match no failure of this session any more. ``every``: all existing cases; ``ran``: the ids
        of those that this session ran."""
        return [symptom for symptom in finding.symptoms if not self._seen(symptom, every, ran)]

    def _seen(self, symptom: Symptom, every: Sequence[Case], ran: Collection[str]) -> bool:
        """Whether the failure occurred. Some sessions cannot tell: one that did not run all covered cases, one that
        left a figure undecided, and one on GPUs if the symptom is not only for GPUs. In these the symptom must only
        match an existing case. A failure outside of the band fails its own test."""
        figures = [(case, f) for case, measurements in self.judged.items() for f in measurements]
        found = {figure.verdict for case, figure in figures if symptom.about(case, figure)}
        shown = any(figure.verdict == "pass" and symptom.shown_by(case, figure) for case, figure in figures)
        covered = [case for case in every if symptom.matches(case.id)]
        elsewhere = self.device != (symptom.device or "cpu")
        some = any(case.id not in ran for case in covered)
        undecided = "pass" not in found or found & {"inconclusive", "invalid", "error"}
        return bool(covered) if undecided or elsewhere or some else shown or "fail" in found
