"""Values that an engine reports of its own steps (loss scales, norms, rewards), compared with the dense model's."""

from typing import TYPE_CHECKING

from harness.spec import Case, Measurement, Needs, Occasion, Trainers

if TYPE_CHECKING:
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 7, Needs.ORACLE, ()


def asked(occasion: Occasion) -> bool:
    """Only topics whose dense model observes values have a trace."""
    contract = occasion.card.contract
    return occasion.judged and not occasion.large and isinstance(contract, Trainers) and contract.observes


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import trace
    from harness.spec.run import TrainerRun

    checked = lab.runner.checked(case)
    if checked.problem:
        return [checked.problem]
    reference = lab.runner.reference(case)
    if isinstance(reference, Measurement):
        return [reference]
    (first, *_) = checked.ranks
    assert isinstance(first, TrainerRun)
    return trace.judge(first.observed, reference, case.engine == "reference")
