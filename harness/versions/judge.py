"""Judges a release by the records of its cases: a finding's state, and the verdicts that no finding explains."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.spec import Finding, Measurement
from harness.spec.finding import Symptom
from harness.spec.measurement import VERDICTS
from harness.spec.requires import ANOTHER
from harness.versions.model import RIGHT, UNKNOWN, WRONG, CaseRow, Cell

Record = Mapping[str, Any]  # a row of the store
LONGEST = 300  # characters of a reason
MOST = 20  # errors of a release
FIELDS = ("measure", "quantity", "value", "unit", "verdict", "reason", "law", "bound", "direction", "detail")


def judge(finding: Finding, records: Sequence[Record]) -> Cell | None:
    """A finding's state by the cases of one release; None if none of them could show it. It is wrong if one figure
    matches a symptom; right if figures pass and none fails or ends in an error."""
    passed, doubts = False, list[str]()
    shown = False
    for record in records:
        symptoms = [s for s in finding.symptoms if _concerns(s, record)]
        if not symptoms:
            continue
        shown, measurement = True, measured(record)
        if any(symptom.covers(record["case"], measurement) for symptom in symptoms):
            return Cell(WRONG, _said(record), "cases")
        about = any(symptom.about(record["case"], measurement) for symptom in symptoms)
        if measurement.verdict == "error" or (about and measurement.verdict == "fail"):
            outside = "" if measurement.verdict == "error" else "outside of the finding's bands, "
            doubts.append(f"{outside}{_said(record)}")
        passed = passed or (about and measurement.verdict == "pass")
    if not shown:
        return None
    if doubts or not passed:
        return Cell(UNKNOWN, (doubts or [_undecided(finding, records)])[0], "cases")
    return Cell(RIGHT, "", "cases")


def measured(record: Record) -> Measurement:
    return Measurement(**{name: record[name] for name in FIELDS})


def _concerns(symptom: Symptom, record: Record) -> bool:
    """Whether the symptom speaks of this measure of the case; a case that did not run has no other quantity."""
    device = symptom.device in ("", record["device"])
    return device and symptom.measure == record["measure"] and symptom.matches(record["case"])


def _said(record: Record) -> str:
    return f"{record['case']}, {record['measure']} {record['quantity']}: {_first(record['reason'])}"


def _first(reason: str) -> str:
    """An error's first line; the message that the engine gave stands there."""
    line = next(iter(reason.strip().splitlines()), "")
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"


def _undecided(finding: Finding, records: Sequence[Record]) -> str:
    mine = (r for r in records if r["verdict"] != "pass" and any(_concerns(s, r) for s in finding.symptoms))
    return next(map(_said, mine), "no case took the figures that show it")


def errors(records: Iterable[Record]) -> dict[str, int]:
    """How many measurements ended in each error, for the most frequent ones; or were not taken, since the engine's
    adapter requires another release."""
    unlike = (r for r in records if r["verdict"] == "error" or (r["verdict"] == "skipped" and ANOTHER in r["reason"]))
    return dict(Counter(_first(r["reason"]) for r in unlike).most_common(MOST))


def changes(found: Mapping[str, Sequence[Record]], findings: Sequence[Finding]) -> tuple[CaseRow, ...]:
    """The cases that pass in some releases and fail in others; ``found``: the records of each release. A failure that
    a finding covers is none here."""
    verdicts: dict[tuple[str, str], dict[str, str]] = {}
    reasons: dict[tuple[str, str], dict[str, str]] = {}
    for version, records in found.items():
        for record in records:
            key = (record["case"], record["measure"])
            verdict = record["verdict"]
            if verdict == "fail" and _covered(record, findings):
                verdict = "known"
            before = verdicts.setdefault(key, {}).get(version, "pass")
            verdicts[key][version] = min(before, verdict, key=_rank)
            if verdict == "fail":
                reasons.setdefault(key, {}).setdefault(version, f"{record['quantity']}: {_first(record['reason'])}")
    return tuple(
        CaseRow(case, measure, mine, reasons.get((case, measure), {}))
        for (case, measure), mine in sorted(verdicts.items())
        if {"pass", "fail"} <= set(mine.values())
    )


def _rank(verdict: str) -> int:
    """A known failure is worse than a pass, and hides nothing that is worse."""
    return len(VERDICTS) - 1 if verdict == "known" else VERDICTS.index(verdict) + (verdict == "pass")


def _covered(record: Record, findings: Sequence[Finding]) -> bool:
    measurement = measured(record)
    return any(
        symptom.covers(record["case"], measurement)
        for finding in findings
        for symptom in finding.symptoms
        if symptom.device in ("", record["device"])
    )
