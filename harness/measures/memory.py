"""What an engine holds against the law, and the peak of a step against the leanest engine."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.spec import Case, Finding, Needs, Occasion

if TYPE_CHECKING:
    from harness.lab import Lab

PLACE, NEEDS = 2, Needs.CHECKED
LEAN = 1.05  # a reference that peaks above this × the leanest engine is a toy


def asked(occasion: Occasion) -> bool:
    return occasion.judged


def take(lab: "Lab", case: Case) -> list[Finding]:
    checked = lab.checked(case)
    if checked.problem:
        return [checked.problem]
    held = "states" if "states" in checked.ranks[0] else "saved"
    padding = float(checked.ranks[0]["padding"]) * case.workload.element_size
    most = max(checked.ranks, key=lambda rank: float(rank[held]))
    found = lab.against_law(case, "memory", held, float(most[held]), padding if held == "states" else 0.0)
    findings = [found.but(detail={**found.detail, "meter": most["meter"]})]
    if "activations" in most:
        kept = max(float(rank["activations"]) for rank in checked.ranks)
        findings.append(lab.against_law(case, "memory", "activations", kept))
    return [*findings, _against_the_leanest(lab, case)]


def _against_the_leanest(lab: "Lab", case: Case) -> Finding:
    ranks = lab.checked(case).ranks
    mine, detail = _peak(ranks), {"meter": ranks[0]["meter"]}
    text, verdict, bound = f"{mine / 2**20:.2f} MiB at most in a step", "pass", None
    if case.engine == "reference":
        others = {peer.engine: _peak(lab.checked(peer).ranks) for peer in lab.peers(case)}
        others = {engine: peak for engine, peak in others.items() if not math.isnan(peak)}
        if others:
            leanest = min(others, key=lambda engine: others[engine])
            bound = LEAN * others[leanest]
            if mine > bound:  # what a backend's thread holds a moment longer adds to a peak, and to that of some runs
                mine = min(mine, _peak(lab.again(case).ranks))
                text = f"{mine / 2**20:.2f} MiB at most in a step, in the lower of two runs"
            verdict = "pass" if mine <= bound else "fail"
            text += f"; {mine / others[leanest]:.3f} × the leanest engine, {leanest}; at most {LEAN:g} is asked"
    return Finding("memory", "peak", mine, "B", verdict, text, bound=bound, detail=detail)


def _peak(ranks: Sequence[Mapping[str, Any]]) -> float:
    return max((float(rank["peak"]) for rank in ranks), default=math.nan)
