"""The timeline of a schedule's ranks: idle time and micro-batches in flight, compared with the laws."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness import catalog
from harness.spec import Case, Measurement, Needs, Occasion, Span, Spans, Topology, Unsupported, Workload

if TYPE_CHECKING:
    from harness.launch.rank import Context
    from harness.run.lab import Lab

PLACE, NEEDS, QUANTITIES = 4, Needs.QUIET, ("bubble", "in_flight", "flights")
WARM, ROUNDS = 1, 3  # backward passes before the watched ones, and watched ones
WORLDS = 2  # limit for watching one schedule


def asked(occasion: Occasion) -> bool:
    return occasion.traced and any(law.measure == "timeline" for law in occasion.card.laws)


def take(lab: "Lab", case: Case) -> list[Measurement]:
    from harness.judge import timeline

    runner = lab.runner
    runner.rest()
    machines, seen = runner.launcher.watch(), []
    card = runner.card(case)
    laws = {law.quantity: law for law in card.laws if law.measure == "timeline"}
    # Time on CPU ranks never fails. A reference must still keep its schedule's law where each rank has a core.
    told = runner.launcher.device == "cpu" and (case.engine != "reference" or case.topology.world_size > runner.cores)
    for _ in range(WORLDS):
        ranks = runner.run(case, f"{__name__}:watch", cores=runner.cores)
        if isinstance(ranks, Measurement):
            return [ranks]
        rounds = [list(of_ranks) for of_ranks in zip(*ranks, strict=True)]
        options = {**card.variants[case.variant], "times": timeline.means(timeline.times(rounds))}
        promised = {
            name: catalog.load(law.formula)(case.workload, case.topology, **options) for name, law in laws.items()
        }
        # One of two cores may be a third slower for seconds; differences between GPUs' stages are the engine's own.
        alike = runner.launcher.device == "cpu"
        found = timeline.judge(rounds, runner.cores, promised, laws, bool(machines.disturbance()), alike)
        seen.append([_told(measurement) for measurement in found] if told else found)
        if not timeline.unequal(seen[-1]):
            return seen[-1]
    return min(seen, key=timeline.found_bubble)  # the machine's share of a bubble differs between worlds


def _told(measurement: Measurement) -> Measurement:
    if measurement.quantity != "bubble" or measurement.verdict != "fail":
        return measurement
    reason = f"{measurement.reason}; above its bound, but time on CPU ranks never fails"
    return measurement.but(verdict="inconclusive", reason=reason)


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
    """In a rank: the spans of its actions in some backward passes, for engines that run a schedule."""
    import gc
    import time

    import torch.distributed as dist

    from harness.catalog import load
    from harness.launch.timed import BATCHES

    batch = load(f"{data}:batch")
    trainer: Any = load(build)(workload, topology, **variant)
    if not hasattr(trainer, "record"):
        raise Unsupported("this engine has no schedule to watch")
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
