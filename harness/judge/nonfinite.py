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
    lost, text = _lost(ranks, clipped)
    verdict = "fail" if lost else "pass"
    found = [Measurement("nonfinite", "lost", lost, "%", verdict, text, bound=0.0)]
    if len(ranks) > 1:
        found.append(parity.replicas([[{n: w.digest for n, w in step.items()} for step in rank] for rank in ranks]))
    return found


def _lost(ranks: Sequence[Sequence[Weights]], clipped: bool) -> tuple[float, str]:
    """The share of elements, on the rank with most, that the NaN should have reached and did not."""
    *before, after, later = [[rank[step] for rank in ranks] for step in range(POISONED_STEP + 1)]
    if early := max(_share(weights, "nonfinite") for step in before for weights in step):
        return early, f"{early:.3g} % of the elements are NaN before step {POISONED_STEP}, whose gradient is the first"
    if not any(_share(weights, "nonfinite") or _share(weights, "changed") for weights in after):
        if any(_share(w, "nonfinite") or not _share(w, "changed") for w in later if w):
            return 100.0, f"step {POISONED_STEP} is skipped on all ranks, but the next one is wrong: {_told(later)}"
        return 0.0, f"step {POISONED_STEP} is skipped on all ranks, and the next one trains on"
    every = [weight for weights in after for weight in weights.values()]
    if all(weight.nonfinite == weight.elements if clipped else weight.nonfinite for weight in every):
        what = "every element is" if clipped else "every weight has"
        return 0.0, f"{what} NaN on all ranks after step {POISONED_STEP}: the run shows it"
    lost = max(100.0 - _share(weights, "nonfinite") for weights in after if weights)
    of = "the norm of the gradients" if clipped else "the gradient of every weight"
    return lost, f"{of} is NaN in step {POISONED_STEP}, but after it {_told(after)}"


def _told(ranks: Sequence[Weights]) -> str:
    """For each rank that returns weights, or once if all are alike, what became of them."""
    texts = {rank: _fate(weights) for rank, weights in enumerate(ranks) if weights}
    if len(set(texts.values())) == 1:
        return f"{next(iter(texts.values()))} on all ranks"
    return "; ".join(f"{text} on rank {rank}" for rank, text in texts.items())


def _fate(weights: Weights) -> str:
    text = f"{_share(weights, 'nonfinite'):.3g} % of the elements are NaN"
    moved = [name for name, weight in weights.items() if weight.changed]
    if not moved:
        return f"{text} and no other changes"
    more = f" and {len(moved) - NAMES} more weights" if len(moved) > NAMES else ""
    names = f"{', '.join(moved[:NAMES])}{more}"
    return f"{text} and {_share(weights, 'changed'):.3g} % are updated with finite values ({names})"


def _share(weights: Weights, field: str) -> float:
    """In per cent; 0 for a rank that returns no weights."""
    elements = sum(weight.elements for weight in weights.values())
    found: int = sum(getattr(weight, field) for weight in weights.values())
    return 100.0 * found / max(elements, 1)
