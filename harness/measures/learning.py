"""How well a whole run of training learns, against the reference, over several seeds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.spec import Case, Curves, Finding, Flows, Needs, Occasion, Topology, Workload

if TYPE_CHECKING:
    from harness.launch.rank import Context
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 8, Needs.RUN, ()


def asked(occasion: Occasion) -> bool:
    return isinstance(occasion.card.contract, Flows)


def take(lab: "Lab", case: Case) -> list[Finding]:
    from harness.judge import learning

    contract = lab.runner.card(case).contract
    assert isinstance(contract, Flows)
    work = {"seeds": contract.seeds, "budget": contract.budget}
    runs = [lab.runner.once(c, f"{__name__}:curves", **work) for c in (case, replace(case, engine="reference"))]
    for found in runs:
        if isinstance(found, Finding):
            return [found]
    engine, reference = (ranks[0] for ranks in runs)
    return learning.judge(engine, reference, contract.score, contract.better)


def curves(
    context: "Context",
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    seeds: int,
    budget: int,
) -> list[Curves]:
    """In a rank: a run for each seed, the workload's own and those that follow."""
    from harness.catalog import load
    from harness.launch.checked import widen

    widen(context, workload)
    run = load(build)
    return [run(workload, topology, workload.seed + seed, budget, **variant) for seed in range(seeds)]
