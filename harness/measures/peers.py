"""An engine's peak and calls beside the most frugal right engine's; one that breaks a law may save one by the other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.spec import Case, Measurement, Needs, Occasion

if TYPE_CHECKING:
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 10, Needs.PEERS, ()

PEAK, CALLS = 1.25, 2.0  # × the least of the right engines
SLACK = {"B": 2.0**20, "calls": 0.0}  # by unit: a smaller surplus shows nothing that grows with the work


def asked(occasion: Occasion) -> bool:
    alone = len(occasion.card.adapted) < 2
    return occasion.judged and not alone and not occasion.large and occasion.weighed


def take(lab: "Lab", case: Case) -> list[Measurement]:
    mine = lab.runner.checked(case)
    if mine.problem:
        return [mine.problem]
    right = {peer.engine: peer for peer in lab.runner.peers(case) if peer != case and lab.right(peer)}
    if not right:
        reason = "no other engine is right and keeps the laws in this setting"
        return [Measurement("peers", "run", None, "", "skipped", reason)]
    engines = {case.engine: case, **right}
    found = [_beside(case.engine, "peak", {name: _peak(lab, each) for name, each in engines.items()}, "B", PEAK)]
    if case.topology.world_size > 1 and not any(_unmetered(lab, each) for each in engines.values()):
        calls = {name: _calls(lab, each) for name, each in engines.items()}
        found.append(_beside(case.engine, "calls", calls, "calls", CALLS))
    return found


def _peak(lab: "Lab", case: Case) -> float:
    return max(step.peak for rank in lab.runner.checked(case).ranks for step in rank.memory)


def _calls(lab: "Lab", case: Case) -> float:
    """Collective calls in a step, of the rank that makes most."""
    steps = (step for rank in lab.runner.checked(case).ranks for step in rank.traffic)
    return max(sum(entry["calls"] for entry in step.by_op.values()) for step in steps)


def _unmetered(lab: "Lab", case: Case) -> bool:
    return any(rank.unmetered for rank in lab.runner.checked(case).ranks)


def _beside(engine: str, quantity: str, values: Mapping[str, float], unit: str, factor: float) -> Measurement:
    least = min(values, key=lambda name: values[name])
    value, bound = values[engine], factor * values[least]
    text = f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.0f} {unit} in a step"
    if value > values[least]:
        text += f", {value / values[least]:.2f} × {least}'s {values[least]:,.0f}"
    verdict = "fail" if value > bound and value - values[least] > SLACK[unit] else "pass"
    return Measurement(
        "peers", quantity, value, unit, verdict, text, law=values[least], bound=bound, detail={"least": least}
    )
