"""What an engine holds against the law, and the peak of a step."""

from typing import TYPE_CHECKING

from harness.spec import Case, Finding, Needs, Occasion

if TYPE_CHECKING:
    from harness.lab import Lab

PLACE, NEEDS = 2, Needs.CHECKED


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
    peak = max(float(rank["peak"]) for rank in checked.ranks)
    text, detail = f"{peak / 2**20:.2f} MiB at most in a step", {"meter": most["meter"]}
    return [*findings, Finding("memory", "peak", peak, "B", "pass", text, detail=detail)]
