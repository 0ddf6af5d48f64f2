"""The learning curve over the workload's steps, compared with the oracle's in units of its noise floor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.spec import Case, Measurement, Needs, Occasion, Topology, Trainer, Trainers, Workload

if TYPE_CHECKING:
    from harness.launch.rank import Context
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 6, Needs.RUN, ()
STEPS = 20  # a workload with at least this many steps is trained for its learning curve


def asked(occasion: Occasion) -> bool:
    long = occasion.case.workload.steps >= STEPS and not occasion.case.workload.poisoned
    return long and isinstance(occasion.card.contract, Trainers)


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import curve
    from harness.run.oracle import mean_losses

    ranks = lab.runner.run(case, f"{__name__}:losses")
    if isinstance(ranks, Measurement):
        return [ranks]
    oracle = lab.runner.curves(case)
    return [oracle] if isinstance(oracle, Measurement) else [curve.judge(mean_losses(ranks), *oracle)]


def losses(
    context: "Context",
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
    options: Mapping[str, Any],
) -> list[float]:
    """In a rank: the loss of every step of the workload."""
    from harness.catalog import load
    from harness.launch.checked import widen

    widen(context, workload)
    batch = load(f"{data}:batch")
    trainer: Trainer = load(build)(workload, topology, **variant)
    found = []
    for step in range(workload.steps):
        found.append(float(trainer.backward(batch(workload, step, **options))))
        trainer.update()
    return found
