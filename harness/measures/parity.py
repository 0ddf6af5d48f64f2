"""Gradients, updates and losses (or outputs) compared with the float64 oracle, in noise floors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.spec import Case, Flows, Measurement, Needs, Occasion

if TYPE_CHECKING:
    from harness.judge.parity import Reference
    from harness.run.lab import Lab
    from harness.run.runner import Runner
    from harness.spec.run import FunctionRun, TrainerRun

PLACE, NEEDS, QUANTITIES = 1, Needs.ORACLE, ()


def asked(occasion: Occasion) -> bool:
    """Not taken where numbers are drawn at random, or where the work is too large for an oracle."""
    drawn = occasion.case.workload.model.dropout > 0
    return occasion.judged and not (occasion.large or drawn or isinstance(occasion.card.contract, Flows))


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.spec.run import FunctionRun, TrainerRun

    checked = lab.runner.taken(case)
    if checked.problem:
        return [checked.problem]
    reference = lab.runner.reference(case)
    if isinstance(reference, Measurement):
        return [reference]
    if isinstance(checked.ranks[0], FunctionRun):
        return _function(case, checked.ranks[0], reference)
    ranks = [rank for rank in checked.ranks if isinstance(rank, TrainerRun)]
    return _trainer(lab.runner, case, ranks, reference)


def _function(case: Case, run: "FunctionRun", reference: "Reference") -> list[Measurement]:
    from harness.judge import parity
    from harness.run.oracle import tensors

    found = parity.judge(tensors(run.tensors or {}), (), reference, case.topology.world_size, set())
    return found + parity.equal(run.exact, reference.oracle.exact)


def _trainer(runner: "Runner", case: Case, ranks: Sequence["TrainerRun"], reference: "Reference") -> list[Measurement]:
    from harness.judge import optimizer, parity
    from harness.run.oracle import mean_losses, tensors, trained

    kept, initial = ranks[0].tensors or {}, runner.initial(case)
    kinds, losses = trained(kept, initial), mean_losses([rank.losses for rank in ranks])
    # Under AdamW round-off in small gradients turns into whole steps, so single tensors say little.
    together = {kind for kind in kinds if kind != "gradient"} if case.workload.optimizer == "adamw" else set()
    found = parity.judge(kinds, losses, reference, case.topology.world_size, together)
    if runner.replays(case):
        every, steps = tensors(kept), range(1, len(losses) + 1)
        gradients = [every[f"gradient {step}"] for step in steps]
        weights = [every[f"parameters {step}"] for step in steps]
        # A run goes wrong in this order: the update comes before the next gradients.
        place = next((i for i, each in enumerate(found) if each.quantity.startswith("later ")), len(found))
        skipped = [step for step, seen in enumerate(ranks[0].observed) if seen.get("skipped")]
        found.insert(place, optimizer.judge(gradients, [initial, *weights], case.workload, skipped))
    if len(ranks) > 1:
        found.append(parity.replicas([rank.digests for rank in ranks]))
    if changed := sorted({name for rank in ranks for name in rank.changed}):
        text = f"a step changed frozen tensors: {', '.join(changed)}"
        found.append(Measurement("parity", "frozen", float(len(changed)), "tensors", "fail", text, bound=0.0))
    return found
