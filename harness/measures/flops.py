"""Operations that a step computes, and how many more they are than those of the variant that computes nothing twice."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.spec import Case, Measurement, Needs, Occasion, Topology, Trainer, Trainers, Workload

if TYPE_CHECKING:
    from harness.launch.rank import Context
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 12, Needs.RUN, ("step", "recomputed")


def asked(occasion: Occasion) -> bool:
    """Taken where a law promises a number of operations."""
    promised = any(law.measure == "flops" for law in occasion.card.laws)
    return occasion.judged and promised and isinstance(occasion.card.contract, Trainers)


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import law

    card = lab.runner.card(case)
    found = _counted(lab, case)
    if isinstance(found, Measurement):
        return [found]
    measurements = [law.against(card, case, "flops", "step", found)]
    if twin := card.twins.get(case.variant):
        plain = _counted(lab, replace(case, variant=twin))
        if isinstance(plain, Measurement):
            return [*measurements, plain]
        measurements.append(law.against(card, case, "flops", "recomputed", found - plain))
    return measurements


def _counted(lab: "Lab", case: Case) -> float | Measurement:
    """Operations of the rank that computes most, or the reason why there is no number."""
    ranks = lab.runner.once(case, f"{__name__}:operations")
    return ranks if isinstance(ranks, Measurement) else float(max(ranks))


def operations(
    context: "Context",
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
    options: Mapping[str, Any],
) -> int:
    """In a rank: the operations of a step."""
    from harness.catalog import load
    from harness.launch.checked import widen
    from harness.meter.operations import Operations

    widen(context, workload)
    trainer: Trainer = load(build)(workload, topology, **variant)
    tokens = load(f"{data}:batch")(workload, 0, **options)
    counter = Operations()
    with counter:
        trainer.backward(tokens)
    return counter.counted
