"""Bytes that a rank asks its collectives to send in a step, against the law."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.spec import Case, Finding, Needs, Occasion

if TYPE_CHECKING:
    from harness.lab import Lab

PLACE, NEEDS = 3, Needs.CHECKED


def asked(occasion: Occasion) -> bool:
    return occasion.judged and occasion.case.topology.world_size > 1


def take(lab: "Lab", case: Case) -> list[Finding]:
    checked = lab.checked(case)
    if checked.problem:
        return [checked.problem]
    if unmetered := checked.ranks[0].get("unmetered"):
        return [Finding("traffic", "run", None, "", "skipped", unmetered)]
    totals = [sum(op["bytes"] for op in rank["traffic"].values()) for rank in checked.ranks]
    most = max(range(len(totals)), key=lambda rank: totals[rank])
    by_op, padded = checked.ranks[most]["traffic"], checked.ranks[most]["padding"]
    finding = lab.against_law(case, "traffic", "bytes", totals[most], elements=padded)
    control = sum(op["control"] for op in by_op.values())
    detail = {**finding.detail, "by_op": by_op, "control": control}
    reason = finding.reason + (f"; {control:,.0f} B of losses, norms and flags besides" if control else "")
    findings = [finding.but(detail=detail, reason=reason)]
    if size := lab.card(case).variants[case.variant].get("group"):
        across = max(_across(rank["groups"], int(size)) for rank in checked.ranks)
        findings.append(lab.against_law(case, "traffic", "across_groups", across, elements=padded))
    return findings


def _across(groups: Mapping[tuple[int, ...], float], size: int) -> float:
    """Bytes of collectives among ranks that do not all lie in one group of ``size`` neighbours, say a node."""
    return sum(sent for ranks, sent in groups.items() if len({rank // size for rank in ranks}) > 1)
