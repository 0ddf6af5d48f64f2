"""An engine's states and the memory kept for the backward pass, compared with the laws, and the peak of a step."""

from typing import TYPE_CHECKING

from harness.spec import Case, Flows, Measurement, Needs, Occasion

if TYPE_CHECKING:
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 2, Needs.CHECKED, ("states", "activations", "saved", "growth", "peak")

SCALAR = 16.0  # bytes


def asked(occasion: Occasion) -> bool:
    return occasion.judged and not isinstance(occasion.card.contract, Flows)


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
        ]
    else:
        found = [law.against(card, case, "memory", "saved", kept)]
    peak = max(step.peak for rank in ranks for step in rank.memory)
    text = f"{peak / 2**20:.2f} MiB, the peak of a step"
    found.append(Measurement("memory", "peak", peak, "B", "pass", text))
    return [measurement.but(detail={**measurement.detail, **meter}) for measurement in found]


def _growth(ranks: list[list[float]]) -> Measurement:
    """Two consecutive steps hold the same but for a scalar, say a loss that is kept; a leak grows from step to step."""
    growth = max(after - before for before, after in ranks)
    text = f"{growth:,.0f} B more than in the step before, on the rank with the largest growth"
    return Measurement("memory", "growth", growth, "B", "fail" if growth > SCALAR else "pass", text, bound=SCALAR)
