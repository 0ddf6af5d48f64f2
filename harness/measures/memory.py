"""An engine's states and the memory kept for the backward pass, compared with the laws, and the peak of a step."""

from collections.abc import Sequence
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
            _growth([[step.states for step in rank.memory] for rank in ranks]),
            _graph([rank.nodes for rank in ranks if isinstance(rank, TrainerRun)]),
        ]
    else:
        found = [law.against(card, case, "memory", "saved", kept)]
    peak = max(step.peak for rank in ranks for step in rank.memory)
    text = f"{peak / 2**20:.2f} MiB, the peak of a step"
    found.append(Measurement("memory", "peak", peak, "B", "pass", text))
    return [measurement.but(detail={**measurement.detail, **meter}) for measurement in found]


def _growth(ranks: Sequence[Sequence[float]]) -> Measurement:
    """All steps hold the same but for a scalar, say a loss that is kept; a leak grows from step to step."""
    growth = max(last - settled for settled, *_, last in ranks)
    text = f"{growth:,.0f} B more in the last step than in the third, on the rank with the largest growth"
    return Measurement("memory", "growth", growth, "B", "fail" if growth > SCALAR else "pass", text, bound=SCALAR)


def _graph(ranks: Sequence[Sequence[int]]) -> Measurement:
    """A step frees its graph; one that keeps it (``total += loss``) grows by its nodes."""
    more = max(last - settled for settled, last in ranks)
    text = f"{more:,} autograd nodes more after the last step than after the fourth, on the rank with the most"
    return Measurement("memory", "graph", float(more), "nodes", "fail" if more > 0 else "pass", text, bound=0.0)
