"""The learning curve of the workload's steps, against the oracle's and its noise floor."""

from typing import TYPE_CHECKING

from harness.spec import Case, Finding, Needs, Occasion

if TYPE_CHECKING:
    from harness.lab import Lab

PLACE, NEEDS = 6, Needs.RUN
STEPS = 20  # a workload of at least so many is trained for its learning curve


def asked(occasion: Occasion) -> bool:
    return occasion.trainer and occasion.case.workload.steps >= STEPS


def take(lab: "Lab", case: Case) -> list[Finding]:
    from harness.judge import curve
    from harness.oracle import mean_losses

    ranks = lab.run(case, "curve")
    if isinstance(ranks, Finding):
        return [ranks]
    oracle = lab.curves(case)
    return [oracle] if isinstance(oracle, Finding) else [curve.judge(mean_losses(ranks), *oracle)]
