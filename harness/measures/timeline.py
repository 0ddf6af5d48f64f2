"""What the ranks of a schedule did when: idle time and micro-batches in flight, against the laws."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness import catalog
from harness.spec import Case, Finding, Needs, Occasion, Span, Spans, Topology, Unsupported, Workload

if TYPE_CHECKING:
    from harness.launch.rank import Context
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 4, Needs.QUIET, ("bubble", "in_flight", "flights")
WARM, ROUNDS = 1, 3  # backward passes that are not looked at, and that are
WORLDS = 2  # at most, that one schedule is watched in


def asked(occasion: Occasion) -> bool:
    return occasion.traced and any(law.measure == "timeline" for law in occasion.card.laws)


def take(lab: "Lab", case: Case) -> list[Finding]:
    from harness.judge import timeline

    runner = lab.runner
    runner.rest()
    machines, seen = runner.launcher.watch(), []
    card = runner.card(case)
    laws = {law.quantity: law for law in card.laws if law.measure == "timeline"}
    # Time on CPU ranks is told. A reference is held to its schedule's law all the same, where each rank has a core.
    told = runner.launcher.device == "cpu" and (case.engine != "reference" or case.topology.world_size > runner.cores)
    for _ in range(WORLDS):
        ranks = runner.run(case, f"{__name__}:watch", cores=runner.cores)
        if isinstance(ranks, Finding):
            return [ranks]
        rounds = [list(of_ranks) for of_ranks in zip(*ranks, strict=True)]
        options = {**card.variants[case.variant], "times": timeline.means(timeline.times(rounds))}
        promised = {
            name: catalog.load(law.formula)(case.workload, case.topology, **options) for name, law in laws.items()
        }
        # Of two cores one may be a third slower, for seconds; where GPUs' stages differ, that is the engine's doing.
        alike = runner.launcher.device == "cpu"
        found = timeline.judge(rounds, runner.cores, promised, laws, bool(machines.disturbance()), alike)
        seen.append([_told(finding) for finding in found] if told else found)
        if not timeline.unequal(seen[-1]):
            return seen[-1]
    return min(seen, key=timeline.found_bubble)  # what the machine adds to a bubble differs from world to world


def _told(finding: Finding) -> Finding:
    if finding.quantity != "bubble" or finding.verdict != "fail":
        return finding
    reason = f"{finding.reason}; beyond its bound, but time on CPU ranks is told and never failed"
    return finding.but(verdict="inconclusive", reason=reason)


def watch(
    context: "Context",
    build: str,
    variant: Mapping[str, Any],
    workload: Workload,
    topology: Topology,
    data: str,
    options: Mapping[str, Any],
    cores: int,
) -> list[list[Span]]:
    """In a rank: when it did what in each of some backward passes, for engines that run a schedule."""
    import gc
    import time

    import torch.distributed as dist

    from harness.catalog import load
    from harness.launch.timed import BATCHES

    batch = load(f"{data}:batch")
    trainer: Any = load(build)(workload, topology, **variant)
    if not hasattr(trainer, "record"):
        raise Unsupported("this engine runs no schedule that could be watched")
    shared = topology.world_size > cores
    rounds: list[Spans] = []
    gc.collect()
    gc.freeze()
    for index in range(WARM + ROUNDS):
        rounds.append(Spans(time.thread_time if shared else time.monotonic))
        trainer.record(rounds[-1])
        tokens = batch(workload, index % BATCHES, **options)
        dist.barrier()
        trainer.backward(tokens)
        trainer.record(None)
        trainer.update()
    return [list(spans) for spans in rounds[WARM:]]
