"""Where the time of a timed step goes: arithmetic, memory traffic, communication, idle ranks, the host."""

from typing import TYPE_CHECKING

from harness.measures.throughput import asked as timed
from harness.spec import Case, Measurement, Needs, Occasion

if TYPE_CHECKING:
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 13, Needs.QUIET, ()


def asked(occasion: Occasion) -> bool:
    return timed(occasion)


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import bottleneck

    block = lab.runner.block(case)
    if case.id in block.problems:
        return [block.problems[case.id].but(measure="bottleneck")]
    if case.id not in block.profiles:
        reason = "the profiled steps did not end"
        return [Measurement("bottleneck", "run", None, "", "invalid", reason)]
    checked = lab.runner.checked(case)
    counted = not checked.problem and not any(rank.unmetered for rank in checked.ranks)
    sent = [rank.traffic[-1].by_op for rank in checked.ranks] if counted and case.topology.world_size > 1 else []
    return [bottleneck.judge(block.profiles[case.id], block.ceilings, sent)]
