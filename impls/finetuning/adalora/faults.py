"""AdaLoRA with exactly one thing broken."""

import torch
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LATER_GRADIENT, LOSS, Fault
from impls.finetuning.adalora import LONG, budget, reference


def tilt_of_p_alone(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """Q is not regularised."""
    honest = reference.AdaLoRA.tilts
    reference.AdaLoRA.tilts = lambda layer: honest(layer)[:1]
    return reference.build(workload, topology, **variant)


def tilt_of_every_rank(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """Each rank adds its regulariser before the sum over ranks, which multiplies it."""
    return reference.build(workload, topology, **{**variant, "gamma": variant["gamma"] * topology.dp})


def largest_taken_away(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """The budget keeps the values that matter least."""
    honest = budget.kept
    reference.kept = lambda scores, number: honest([-score for score in scores], number)
    return reference.build(workload, topology, **variant)


def each_matrix_its_share(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """Every matrix keeps as many values as all others, as if they did not compete."""

    def kept(scores: list[Tensor], number: int) -> list[Tensor]:
        return [budget.kept([score], number // len(scores))[0] for score in scores]

    reference.kept = kept
    return reference.build(workload, topology, **variant)


def one_allocation_late(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """The budget of a step is that of the step before."""
    trainer = reference.build(workload, topology, **variant)
    honest = trainer.schedule

    class Late:
        start, end, total, final = honest.start, honest.end, honest.total, honest.final

        def at(self, t: int) -> int | None:
            return honest.at(t - 1)

    trainer.schedule = Late()
    return trainer


def revived_at_the_end(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """The last choice is not kept: values that were set to 0 come back in the final steps."""
    trainer = reference.build(workload, topology, **variant)
    honest = trainer.schedule

    class Once:
        start, end, total, final = honest.start, honest.end, honest.total, honest.final

        def at(self, t: int) -> int | None:
            return honest.at(t) if t <= self.total - self.final else None

    trainer.schedule = Once()
    return trainer


def values_not_masked(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """Nothing is taken away."""
    reference.kept = lambda scores, number: [torch.ones_like(score, dtype=torch.bool) for score in scores]
    return reference.build(workload, topology, **variant)


RANK = {"trace": {"fp32": frozenset({"rank"})}}
FAULTS = {
    "tilt_of_p_alone": Fault("adalora", "dp1", {"parity": {"fp32": GRADIENT}}, workload=LONG),
    "tilt_of_every_rank": Fault("adalora", "dp2", {"parity": {"fp32": GRADIENT}}, workload=LONG),
    "largest_taken_away": Fault("adalora", "dp1", {"parity": {"fp32": LATER_GRADIENT | LOSS}}, workload=LONG),
    "each_matrix_its_share": Fault("adalora", "dp1", {"parity": {"fp32": LATER_GRADIENT | LOSS}}, workload=LONG),
    "one_allocation_late": Fault("adalora", "dp1", RANK, workload=LONG),
    "revived_at_the_end": Fault("adalora", "dp1", RANK, workload=LONG),
    "values_not_masked": Fault("adalora", "dp1", RANK, workload=LONG),
}
