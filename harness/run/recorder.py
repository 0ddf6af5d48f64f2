"""The recorder: what was found of each case, marked where a waiver covers it, and written down at once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from harness.spec import Case, Finding
from harness.waivers import Waiver

Write = Callable[[Case, Sequence[Finding]], None]


class Recorder:
    """``write`` is called with (case, findings) as soon as something is measured: a killed session keeps it."""

    def __init__(self, write: Write, waivers: Sequence[Waiver] = (), device: str = "cpu") -> None:
        self._write, self.waivers, self.device = write, tuple(waivers), device
        self.judged: dict[str, list[Finding]] = {}

    def record(self, case: Case, findings: Sequence[Finding], notes: Mapping[str, Any]) -> list[Finding]:
        """The findings as they are written, with ``notes`` and waivers in their detail."""
        concluded = [each.but(detail={**each.detail, **self._waived(case, each), **notes}) for each in findings]
        self._write(case, concluded)
        self.judged.setdefault(case.id, []).extend(concluded)
        return concluded

    def _waived(self, case: Case, finding: Finding) -> dict[str, str]:
        if finding.verdict == "fail":
            for waiver in self.waivers:
                if not waiver.expired and waiver.about(case.id, finding):
                    return {"waiver": f"{waiver.reason} ({waiver.versions}, until {waiver.expires})"}
        return {}

    def wrong(self, case: Case) -> bool:
        """Whether it computes something else: parity failed here, or is known to."""
        judged = any(f.measure == "parity" and f.verdict == "fail" for f in self.judged.get(case.id, []))
        return judged or any(w.measure == "parity" and w.matches(case.id) for w in self.waivers)

    def records(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """What was found of some cases, as a claim's check is given it."""
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
                **{name: getattr(finding, name) for name in ("measure", "quantity", "value", "unit", "law")},
                "verdict": finding.verdict,
                "detail": finding.detail,
            }
            for case in cases
            for finding in self.judged.get(case.id, [])
        ]

    def needed(self, waiver: Waiver, every: Sequence[Case], ran: Collection[str]) -> bool:
        """Whether something failed that this waiver covers. A session that did not run all cases that it covers, of
        ``every`` case there is, cannot tell, nor one that left a figure undecided, nor one on GPUs of a waiver that is
        not for them alone: for these, it need only match a case that there is."""
        found = {f.verdict for case, findings in self.judged.items() for f in findings if waiver.about(case, f)}
        covered = [case for case in every if waiver.matches(case.id)]
        elsewhere = self.device != (waiver.device or "cpu")
        some = any(case.id not in ran for case in covered)
        undecided = "pass" not in found or found & {"inconclusive", "invalid", "error"}
        return bool(covered) if undecided or elsewhere or some else "fail" in found
