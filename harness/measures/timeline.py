"""What the ranks of a schedule did when: idle time and micro-batches in flight, against the laws."""

from typing import TYPE_CHECKING

from harness import catalog
from harness.spec import Case, Finding, Needs, Occasion

if TYPE_CHECKING:
    from harness.lab import Lab

PLACE, NEEDS = 4, Needs.QUIET
WORLDS = 2  # at most, that one schedule is watched in


def asked(occasion: Occasion) -> bool:
    return occasion.traced and any(law.measure == "timeline" for law in occasion.card.laws)


def take(lab: "Lab", case: Case) -> list[Finding]:
    from harness.judge import timeline
    from harness.meter.host import FOREIGN, CpuWatch

    lab.rest()
    watch, seen = CpuWatch(), []
    card = lab.card(case)
    laws = {law.quantity: law for law in card.laws if law.measure == "timeline"}
    # Time on CPU ranks is told. A reference is held to its schedule's law all the same, where each rank has a core.
    told = lab.launcher.device == "cpu" and (case.engine != "reference" or case.topology.world_size > lab.cores)
    for _ in range(WORLDS):
        ranks = lab.run(case, "timeline", cores=lab.cores)
        if isinstance(ranks, Finding):
            return [ranks]
        rounds = [list(of_ranks) for of_ranks in zip(*ranks, strict=True)]
        options = {**card.variants[case.variant], "times": timeline.means(timeline.times(rounds))}
        promised = {
            name: catalog.load(law.formula)(case.workload, case.topology, **options) for name, law in laws.items()
        }
        # Of two cores one may be a third slower, for seconds; where GPUs' stages differ, that is the engine's doing.
        alike = lab.launcher.device == "cpu"
        found = timeline.judge(rounds, lab.cores, promised, laws, watch.foreign() > FOREIGN, alike)
        seen.append([_told(finding) for finding in found] if told else found)
        if not timeline.unequal(seen[-1]):
            return seen[-1]
    return min(seen, key=timeline.found_bubble)  # what the machine adds to a bubble differs from world to world


def _told(finding: Finding) -> Finding:
    if finding.quantity != "bubble" or finding.verdict != "fail":
        return finding
    reason = f"{finding.reason}; beyond its bound, but time on CPU ranks is told and never failed"
    return finding.but(verdict="inconclusive", reason=reason)
