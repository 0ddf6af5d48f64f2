"""Gradients that are bit-equal to those of another variant, the twin: recomputing or resharding changes no number."""

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.spec import Case, Measurement, Needs, Occasion

if TYPE_CHECKING:
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 8, Needs.RUN, ()


def asked(occasion: Occasion) -> bool:
    return occasion.judged and not occasion.large and occasion.case.variant in occasion.card.twins


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import bits
    from harness.run.oracle import tensors

    twin = replace(case, variant=lab.runner.card(case).twins[case.variant])
    found = []
    for each in (case, twin):
        checked = lab.runner.taken(each)
        if checked.problem:
            return [checked.problem]
        found.append(tensors(checked.ranks[0].tensors or {}))
    ours, theirs = found
    return [bits.judge(ours, theirs, twin.variant)]
