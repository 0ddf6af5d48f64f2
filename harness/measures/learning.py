"""The result of a whole training run compared with the reference's, over several seeds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.spec import Case, Curves, Flows, Measurement, Needs, Occasion, Topology, Workload

if TYPE_CHECKING:
    from harness.launch.rank import Context
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 9, Needs.RUN, ()


def asked(occasion: Occasion) -> bool:
    return occasion.judged and isinstance(occasion.card.contract, Flows)


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import learning, residuals

    contract = lab.runner.card(case).contract
    assert isinstance(contract, Flows)
    work = {"seeds": contract.seeds, "budget": contract.budget}
    engine = lab.runner.once(case, f"{__name__}:curves", **work)
    reference = lab.runner.once(replace(case, engine="reference"), f"{__name__}:curves", **work)
    if isinstance(engine, Measurement) or isinstance(reference, Measurement):
        return [found for found in (engine, reference) if isinstance(found, Measurement)][:1]
    found = learning.judge(engine[0], reference[0], contract.score, contract.better)
    if any(run.losses for run in reference[0]):
        found.append(residuals.judge(engine[0], reference[0], case.workload.dtype))
    return found


def curves(
    context: "Context",
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    seeds: int,
    budget: int,
) -> list[Curves]:
    """In a rank: one run for each seed, beginning with the workload's own."""
    from harness.catalog import load
    from harness.launch.checked import widen

    widen(context, workload)
    run = load(build)
    return [run(workload, topology, workload.seed + seed, budget, **variant) for seed in range(seeds)]
