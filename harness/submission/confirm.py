"""Compares the figures of a submission with those of the same cases run again, figure by figure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

CONFIRMED, REFUTED, UNKNOWN = "confirmed", "refuted", "could not be judged"
ABOUT_RUNS = ("card", "calibration", "finding", "claim")
JUDGED = ("pass", "fail", "inconclusive")
BANDED = ("memory", "traffic")
BOUNDED = ("parity", *BANDED)  # where a passing figure is never above its bound
BAND = 0.05  # of memory and traffic without a law: allocators and libraries round differently
TIMED = ("throughput", "bottleneck", "timeline")
NOISE = "minimum_detectable_effect"
LARGEST_NOISE = 0.10  # a noisier machine confirms and refutes nothing about speed


@dataclass(frozen=True)
class Outcome:
    case: str
    measure: str
    quantity: str
    state: str
    reason: str


def inconsistent(records: Iterable[Record]) -> list[Outcome]:
    """Figures that refute themselves: they are said to pass and exceed their own bound."""
    return [
        _outcome(record, REFUTED, f"said to pass with {record['value']:g}, and its own bound is {record['bound']:g}")
        for record in records
        if record["measure"] in BOUNDED
        and record["verdict"] == "pass"
        and record["direction"] == "lower"
        and None not in (record["value"], record["bound"])
        and record["value"] > record["bound"]
    ]


def confirm(theirs: Sequence[Record], ours: Sequence[Record], same_hardware: bool) -> list[Outcome]:
    """One outcome for each figure of the submission."""
    again = {(r["case"], r["measure"], r["quantity"]): r for r in ours}
    return [
        _judge(record, again.get((record["case"], record["measure"], record["quantity"])), same_hardware)
        for record in theirs
        if record["measure"] not in ABOUT_RUNS
    ]


def _judge(theirs: Record, ours: Record | None, same_hardware: bool) -> Outcome:
    if theirs["verdict"] not in JUDGED:
        return _outcome(theirs, UNKNOWN, f"the submission itself says {theirs['verdict']}")
    if ours is None:
        return _outcome(theirs, UNKNOWN, "it was not measured again")
    if ours["verdict"] not in JUDGED:
        return _outcome(theirs, UNKNOWN, f"{ours['verdict']} here: {_line(ours['reason'])}")
    if theirs["unit"] != ours["unit"]:
        return _outcome(theirs, UNKNOWN, f"in {theirs['unit']} there, in {ours['unit']} here: another Plumbline")
    if theirs["measure"] in TIMED or theirs["unit"] in ("s", "seconds"):
        return _timed(theirs, ours, same_hardware)
    if {theirs["verdict"], ours["verdict"]} == {"pass", "fail"}:
        return _outcome(theirs, REFUTED, f"{theirs['verdict']} there, {ours['verdict']} here: {_line(ours['reason'])}")
    if theirs["measure"] in BANDED and theirs["value"] is not None and ours["value"] is not None:
        return _banded(theirs, ours)
    if theirs["verdict"] != ours["verdict"]:
        return _outcome(theirs, UNKNOWN, f"{theirs['verdict']} there, {ours['verdict']} here")
    return _outcome(theirs, CONFIRMED, f"{ours['verdict']} here as well")


def _banded(theirs: Record, ours: Record) -> Outcome:
    band = BAND
    if theirs["law"] and ours["law"] and ours["bound"] is not None:
        band = max(abs(ours["bound"] / ours["law"] - 1), 0.0)  # ours: theirs may say anything
    allowed = band * max(abs(theirs["value"]), abs(ours["value"])) + 0.5  # half a unit: buffers are not always even
    text = f"{theirs['value']:,.0f} {theirs['unit']} there, {ours['value']:,.0f} here, band {band:.2%}"
    near = abs(theirs["value"] - ours["value"]) <= allowed
    return _outcome(theirs, CONFIRMED if near else REFUTED, text)


def _timed(theirs: Record, ours: Record, same_hardware: bool) -> Outcome:
    if not same_hardware:
        return _outcome(theirs, UNKNOWN, "speed is compared on the same hardware only")
    noises = [float(n) for record in (theirs, ours) if (n := (record["detail"] or {}).get(NOISE)) is not None]
    if len(noises) < 2 or not (theirs["value"] and ours["value"]):
        return _outcome(theirs, UNKNOWN, "no noise was measured with it, so no difference can be judged")
    noise = math.hypot(*noises)
    apart = abs(math.log(ours["value"] / theirs["value"]))
    text = f"{theirs['value']:.4g} {theirs['unit']} there, {ours['value']:.4g} here, noise {noise:.1%}"
    if noise > LARGEST_NOISE:
        return _outcome(theirs, UNKNOWN, f"{text}: too large")
    if apart <= math.log1p(noise):
        return _outcome(theirs, CONFIRMED, text)
    if apart > math.log1p(noise + LARGEST_NOISE):
        return _outcome(theirs, REFUTED, text)
    return _outcome(theirs, UNKNOWN, f"{text}: apart by more than the noise of one run, by less than that of two days")


def _outcome(record: Record, state: str, reason: str) -> Outcome:
    return Outcome(record["case"], record["measure"], record["quantity"], state, reason)


def _line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason was recorded")[:300]
