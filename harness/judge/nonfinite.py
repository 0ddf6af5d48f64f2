"""The way of a NaN: it reaches every weight on every rank, or the step changes nothing on any rank."""

from collections.abc import Mapping, Sequence

from harness.judge import parity
from harness.spec import Measurement
from harness.spec.run import Weight
from harness.spec.workload import POISONED_STEP

Weights = Mapping[str, Weight]
NAMES = 3  # at most this many weights are named in a message


def judge(ranks: Sequence[Sequence[Weights]], clipped: bool) -> list[Measurement]:
    """``ranks``: by rank and step, the weights that the rank returns; the last step comes after the poisoned one.
    ``clipped``: the norm of all gradients scales each of them, so that one NaN reaches every element."""
    held = [rank for rank in ranks if rank[0]]
    digests = [[{name: weight.digest for name, weight in step.items()} for step in rank] for rank in ranks]
    after = [rank[POISONED_STEP - 1] for rank in held]
    share = min(100.0 * _sum(weights, "nonfinite") / _sum(weights, "elements") for weights in after)
    verdict, text = _spread(held, clipped)
    spread = Measurement("nonfinite", "spread", share, "%", verdict, text, direction="equal")
    return [spread, *([parity.replicas(digests)] if len(held) > 1 else [])]


def _spread(ranks: Sequence[Sequence[Weights]], clipped: bool) -> tuple[str, str]:
    after, later = [rank[POISONED_STEP - 1] for rank in ranks], [rank[POISONED_STEP] for rank in ranks]
    if any(_sum(step, "nonfinite") for rank in ranks for step in rank[: POISONED_STEP - 1]):
        return "fail", f"weights are not finite before step {POISONED_STEP}, whose gradient is the first NaN"
    if not any(_sum(weights, "nonfinite") or _sum(weights, "changed") for weights in after):
        if any(_sum(weights, "nonfinite") or not _sum(weights, "changed") for weights in later):
            return "fail", f"step {POISONED_STEP} is skipped on all ranks, but the next one: {_told(later)}"
        return "pass", f"step {POISONED_STEP} is skipped on all ranks, and the next one trains on"
    every = [weight for weights in after for weight in weights.values()]
    if all(weight.nonfinite == weight.elements if clipped else weight.nonfinite for weight in every):
        place = "every element" if clipped else "every weight"
        return "pass", f"after step {POISONED_STEP} {place} is NaN on all ranks: the run shows it"
    return "fail", f"the gradient of step {POISONED_STEP} has NaN, which is lost on the way: {_told(after)}"


def _told(ranks: Sequence[Weights]) -> str:
    """For each rank, or once if all are alike, what became of its weights."""
    texts = [_fate(weights) for weights in ranks]
    if len(set(texts)) == 1:
        return f"{texts[0]} on all ranks"
    return "; ".join(f"{text} on rank {rank}" for rank, text in enumerate(texts))


def _fate(weights: Weights) -> str:
    share = 100.0 * _sum(weights, "nonfinite") / _sum(weights, "elements")
    moved = [name for name, weight in weights.items() if weight.changed]
    if not moved:
        return f"{share:.3g} % of the elements are NaN and no other changes"
    more = f" and {len(moved) - NAMES} more weights" if len(moved) > NAMES else ""
    text = f"{share:.3g} % of the elements are NaN and {_sum(weights, 'changed'):,} are updated with finite values"
    return f"{text} ({', '.join(moved[:NAMES])}{more})"


def _sum(weights: Weights, field: str) -> int:
    return sum(getattr(weight, field) for weight in weights.values())
