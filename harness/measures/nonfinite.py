"""The way of a gradient that is NaN on one data-parallel rank: to all ranks, or to none, and through clipping."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.spec import Case, Measurement, Needs, Occasion, Topology, Trainer, Workload
from harness.spec.contract import COMMON

if TYPE_CHECKING:
    from torch import Tensor

    from harness.launch.rank import Context
    from harness.run.lab import Lab
    from harness.spec.run import Weight

PLACE, NEEDS, QUANTITIES = 11, Needs.RUN, ()

SAID = re.compile(r"\b(nans?|infs?|infinit\w*|(non-?|in)?finite|overflow\w*)\b", re.IGNORECASE)


def asked(occasion: Occasion) -> bool:
    """Taken of poisoned work, of which nothing else is taken; a dense model or data of a topic's own have none."""
    return occasion.case.workload.poisoned and occasion.card.contract == COMMON


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import nonfinite
    from harness.launch.outcome import Done, Raised
    from harness.run.oracle import trouble

    outcomes = lab.runner.outcomes(case, f"{__name__}:weights")
    stopped = [each for each in outcomes if isinstance(each, Raised) and SAID.search(each.message)]
    if len(stopped) == len(outcomes):
        return [Measurement("nonfinite", "lost", None, "%", "pass", f"every rank stops: {stopped[0].message}")]
    if problem := trouble(outcomes):
        return [problem]
    ranks = [each.value for each in outcomes if isinstance(each, Done)]
    return nonfinite.judge(ranks, case.workload.max_grad_norm > 0)


def weights(
    context: "Context",
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
    options: Mapping[str, Any],
) -> list[dict[str, "Weight"]]:
    """In a rank: its weights after each step, up to the one after the poisoned step."""
    from harness.catalog import load
    from harness.launch.checked import widen
    from harness.spec.workload import POISONED_STEP

    widen(context, workload)
    batch = load(f"{data}:batch")
    trainer: Trainer = load(build)(workload, topology, **variant)
    found: list[dict[str, Weight]] = []
    before: Mapping[str, Tensor] = {}
    for step in range(POISONED_STEP + 1):
        trainer.backward(batch(workload, step, **options))
        trainer.update()
        after = {name: tensor.detach().cpu().clone() for name, tensor in trainer.parameters().items()}
        found.append({name: _weight(name, tensor, before.get(name, tensor)) for name, tensor in after.items()})
        before = after
    return found


def _weight(name: str, tensor: "Tensor", before: "Tensor") -> "Weight":
    import torch

    from harness.launch.checked import digest
    from harness.spec.run import Weight
    from harness.spec.workload import POISONED_WEIGHT

    if name == POISONED_WEIGHT:
        tensor, before = tensor[:-1], before[:-1]
    finite = tensor.isfinite()
    changed = finite & (tensor != before)
    same = torch.where(tensor.isnan(), torch.nan, tensor)  # NaNs of several bit patterns say the same
    return Weight(tensor.numel(), int((~finite).sum()), int(changed.sum()), digest(same))
