"""An engine's states and the memory kept for the backward pass, compared with the laws, and the peak of a step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.spec import Case, Measurement, Needs, Occasion

if TYPE_CHECKING:
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 2, Needs.CHECKED, ("states", "activations", "saved", "growth", "graph", "peak")

SCALAR = 16.0  # bytes


def asked(occasion: Occasion) -> bool:
    return occasion.judged and occasion.weighed


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import law
    from harness.spec.run import TrainerRun

    checked = lab.runner.checked(case)
    if checked.problem:
        return [checked.problem]
    card, ranks = lab.runner.card(case), checked.ranks
    meter = {"meter": ranks[0].meter}
    kept = max(step.kept for rank in ranks for step in rank.memory)
    if isinstance(ranks[0], TrainerRun):
        padding = float(ranks[0].padding) * case.workload.element_size
        states = max(step.states for rank in ranks for step in rank.memory)
        found = [
            law.against(card, case, "memory", "states", states, padding),
            law.against(card, case, "memory", "activations", kept),
            _growth([[step.states for step in rank.memory] for rank in ranks], _idle(ranks[0].observed)),
            _graph([rank.nodes for rank in ranks if isinstance(rank, TrainerRun)]),
        ]
    else:
        found = [law.against(card, case, "memory", "saved", kept)]
    peak = max(step.peak for rank in ranks for step in rank.memory)
    text = f"{peak / 2**20:.2f} MiB, the peak of a step"
    found.append(Measurement("memory", "peak", peak, "B", "pass", text))
    return [measurement.but(detail={**measurement.detail, **meter}) for measurement in found]


def _idle(observed: Sequence[Mapping[str, float]]) -> int:
    """The number of steps at the start that changed nothing, as an optimizer makes its states in the first that
    does."""
    return next((step for step, seen in enumerate(observed) if not seen.get("skipped")), len(observed))


def _growth(ranks: Sequence[Sequence[float]], idle: int) -> Measurement:
    """All steps hold the same but for a scalar, say a loss that is kept; a leak grows from step to step. ``ranks``: the
    states of each in the third, the fourth and the last step, the first of which has those of the optimizer after
    fewer than two ``idle`` steps."""
    later = max(idle - 1, 0)  # the first of them that has all states
    if later > 1:
        text = f"the first {idle} steps were skipped, so the optimizer's states are too young to compare"
        return Measurement("memory", "growth", None, "B", "inconclusive", text)
    growth = max(states[-1] - states[later] for states in ranks)
    than = ("third", "fourth")[later]
    text = f"{growth:,.0f} B more in the last step than in the {than}, on the rank with the largest growth"
    return Measurement("memory", "growth", growth, "B", "fail" if growth > SCALAR else "pass", text, bound=SCALAR)


def _graph(ranks: Sequence[Sequence[int]]) -> Measurement:
    """A step frees its graph; one that keeps it (``total += loss``) grows by its nodes."""
    more = max(last - settled for settled, last in ranks)
    text = f"{more:,} autograd nodes more after the last step than after the fourth, on the rank with the most"
    return Measurement("memory", "graph", float(more), "nodes", "fail" if more > 0 else "pass", text, bound=0.0)
