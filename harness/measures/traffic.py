"""Bytes that a rank sends through its collectives in a step, compared with the law."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.spec import Case, Flows, Measurement, Needs, Occasion
from harness.spec.measurement import worst

if TYPE_CHECKING:
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 3, Needs.CHECKED, ("bytes", "across_groups")


def asked(occasion: Occasion) -> bool:
    several = occasion.case.topology.world_size > 1
    return occasion.judged and several and not isinstance(occasion.card.contract, Flows)


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import law

    checked = lab.runner.checked(case)
    if checked.problem:
        return [checked.problem]
    if unmetered := checked.ranks[0].unmetered:
        return [Measurement("traffic", "run", None, "", "skipped", unmetered)]
    card, found = lab.runner.card(case), []
    for ranks in zip(*(rank.traffic for rank in checked.ranks), strict=True):
        step = max(ranks, key=lambda rank: rank.bytes)
        measurement = law.against(card, case, "traffic", "bytes", step.bytes, elements=checked.ranks[0].padding)
        control = f"; {step.control:,.0f} B of losses, norms and flags in addition" if step.control else ""
        detail = {**measurement.detail, "by_op": step.by_op, "control": step.control}
        found.append(measurement.but(detail=detail, reason=measurement.reason + control))
    measurements = [worst(found)]  # each step must keep the law
    if size := card.variants[case.variant].get("group"):
        across = max(_across(step.groups, int(size)) for rank in checked.ranks for step in rank.traffic)
        measurements.append(
            law.against(card, case, "traffic", "across_groups", across, elements=checked.ranks[0].padding)
        )
    return measurements


def _across(groups: Mapping[tuple[int, ...], float], size: int) -> float:
    """Bytes of collectives in groups that do not fit into ``size`` neighbouring ranks, such as a node."""
    return sum(sent for ranks, sent in groups.items() if len({rank // size for rank in ranks}) > 1)
