"""Gradients, updates and losses (or outputs) against the float64 oracle, in noise floors."""

from typing import TYPE_CHECKING

from harness.spec import Case, Finding, Needs, Occasion

if TYPE_CHECKING:
    from harness.lab import Lab

PLACE, NEEDS = 1, Needs.ORACLE


def asked(occasion: Occasion) -> bool:
    return occasion.judged and not occasion.large


def take(lab: "Lab", case: Case) -> list[Finding]:
    checked = lab.taken(case)
    if checked.problem:
        return [checked.problem]
    from harness.judge import parity
    from harness.oracle import mean_losses, tensors, update

    reference = lab.reference(case)
    if isinstance(reference, Finding):
        return [reference]
    found = tensors(checked.ranks[0]["tensors"])
    losses = mean_losses([rank["losses"] for rank in checked.ranks])
    if "parameters" in found:
        found["update"] = update(found.pop("parameters"), lab.initial(case.workload))
    whole = {kind: not (kind == "update" and case.workload.optimizer == "adamw") for kind in found}
    return parity.judge(found, losses, reference, case.topology.world_size, whole)
