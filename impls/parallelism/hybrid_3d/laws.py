"""What a mesh promises: on each rank the sum of what its axes promise of the part that it holds."""

from collections.abc import Iterator
from math import prod

from harness.spec import MoeConfig, Topology, Unsupported, Workload
from impls.common.cuts import EMBEDDING
from impls.common.experts import is_expert
from impls.parallelism.context_parallel.laws import traffic as rings
from impls.parallelism.hybrid_3d.resharding import meshes
from impls.parallelism.hybrid_3d.stage import LAYOUT, ROUTER, part_length
from impls.parallelism.pipeline_parallel.plan import consumer, homes
from impls.parallelism.pipeline_parallel.schedules import plan_of
from impls.parallelism.tensor_parallel.laws import MOMENTS, REPLICATED, part, ring


def held(workload: Workload, topology: Topology, schedule: str = "1f1b") -> Iterator[dict[str, float]]:
    """The elements that the first tp rank at each place along pp holds of each parameter there."""
    places = homes(workload.model, plan_of(workload, topology, schedule))
    sizes = {name: _part(name, shape, topology) for name, shape in workload.model.shapes()}
    for rank in range(topology.pp):
        yield {name: size for name, size in sizes.items() if rank in places[name]}


def _part(name: str, shape: tuple[int, ...], topology: Topology) -> float:
    if name.endswith(ROUTER):
        return prod(shape)
    return part(name, shape, topology.tp) / (topology.ep if is_expert(name) else 1)


def states(
    workload: Workload,
    topology: Topology,
    sequence_parallel: bool = False,
    partition: bool = False,
    resharding: str = "",
    schedule: str = "1f1b",
) -> float | None:
    """Bytes of weights, gradients, masters and moments on the rank whose stages hold most; with ZeRO-1 masters and
    moments ÷ (d·c), of an expert ÷ its copies. A run that changes its mesh is measured on the second."""
    try:
        *_, topology = meshes(topology, resharding)
        stages = list(held(workload, topology, schedule))
    except Unsupported:
        return None
    e, ranks = workload.element_size, topology.dp * topology.cp if partition else 1
    optimizer = (4 if e < 4 else 0) + MOMENTS[workload.optimizer]
    stepped = {
        name: ranks / (topology.ep if partition and is_expert(name) else 1) for name, _ in workload.model.shapes()
    }
    return max(sum(size * (2 * e + optimizer / stepped[name]) for name, size in stage.items()) for stage in stages)


def traffic(
    workload: Workload,
    topology: Topology,
    sequence_parallel: bool = False,
    partition: bool = False,
    resharding: str = "",
    schedule: str = "1f1b",
) -> float | None:
    """Bytes that the busiest rank sends in a step, n = b·s·h elements of each micro-batch, s being the part of a
    sequence that it has:

        pp    n for each F and B of which another rank's stage needs the result; with sequence parallelism b·⌈s/t⌉·h
        tp    all-reduces of n: 4 a layer, 1 of the embedding, 1 of the head; the cross-entropy's statistics; with
              sequence parallelism half an all-reduce more for each gather that is done again (2 a layer, 1 of the head)
        cp    a layer's attention goes round the ring, with a t-th of the heads
        once  the gains' gradients over tp, a tied embedding's over its stages, and all gradients over dp × cp

    ZeRO-1's reduce-scatter and all-gather are an all-reduce in two halves. A run that changes its mesh is measured on
    the second. None with experts: what they exchange depends on what the routers choose as they learn.
    """
    if isinstance(workload.model, MoeConfig):
        return None
    try:
        *_, topology = meshes(topology, resharding)
        plan, stages = plan_of(workload, topology, schedule), list(held(workload, topology, schedule))
    except Unsupported:
        return None
    model, dp, t, e = workload.model, topology.dp, topology.tp, workload.element_size
    b, s = workload.batch_size // dp // workload.micro_batches, part_length(workload, topology.cp)
    around = (rings(workload.with_(batch_size=b), Topology(cp=topology.cp), LAYOUT) or 0.0) / t
    length = -(-s // t) if sequence_parallel else s
    n = b * model.hidden_size * e * (t * length if sequence_parallel else s)
    statistics = ring(b * s * max(4, e), t) + ring(2 * b * s * max(4, e), t)
    again = 0.5 if sequence_parallel else 0.0
    totals = []
    for rank, mine in enumerate(stages):
        first, last = rank == plan.rank_of[0], rank == plan.rank_of[-1]
        layers = sum(name.endswith("q_proj.weight") for name in mine)
        sums = layers * (4 + 2 * again) + first + last * (1 + again)
        step = sums * ring(n, t) + last * statistics + layers * around
        receivers = (consumer(action, plan) for action in plan.actions[rank])
        sent = sum(r is not None and plan.rank_of[r.stage] != rank for r in receivers)
        summed = REPLICATED if sequence_parallel else ("q_norm.weight", "k_norm.weight")
        gains = sum(size for name, size in mine.items() if name.endswith(summed)) * e
        tied = mine[EMBEDDING] * e if model.tie_word_embeddings and first != last else 0
        once = ring(gains, t) + ring(tied, 2) + ring(sum(mine.values()) * e, dp * topology.cp)
        totals.append(workload.micro_batches * step + sent * b * length * model.hidden_size * e + once)
    return max(totals)
