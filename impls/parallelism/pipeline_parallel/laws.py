"""What pipeline parallelism promises: a part of the layers, and activations that travel between neighbours."""

from collections.abc import Mapping
from math import prod

from harness.spec import Topology, Unsupported, Workload
from impls.parallelism.pipeline_parallel.plan import consumer, homes
from impls.parallelism.pipeline_parallel.schedules import plan_of
from impls.parallelism.tensor_parallel.laws import MOMENTS

EQUAL_TIMES = ("zb_v", "dual_pipe_v", "dual_pipe")  # their papers speak of F = B = W


def states(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> float | None:
    """Bytes of weights in all their versions, gradients, masters and moments on the rank that holds most."""
    try:
        plan = plan_of(workload, topology, schedule, chunks)
    except Unsupported:
        return None
    homes_, sizes = homes(workload.model, plan), {name: prod(shape) for name, shape in workload.model.shapes()}
    p, m, e = topology.pp, workload.micro_batches, workload.element_size
    each = (4 if e < 4 else 0) + MOMENTS[workload.optimizer]
    return float(
        max(
            sum(sizes[n] for n, ranks in homes_.items() if rank in ranks)
            * (e * (versions(schedule, p, m, rank) + 1) + each)
            for rank in range(p)
        )
    )


def versions(schedule: str, p: int, m: int, stage: int) -> int:
    """Of a stage's weights, the newest included: p − s (Narayanan et al. 2019, §3.3), or two (Narayanan et al. 2021,
    "Memory-Efficient …", §3.1); fewer where the step is drained before so many differ."""
    later = p - 1 - stage  # micro-batches in flight after an update
    if schedule == "pipedream":
        return 1 + min(later, m - 1, max(m - later, 1))
    return 2 if schedule == "pipedream_2bw" and m > p else 1


def traffic(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> float | None:
    """Bytes that the rank which sends most sends in a step: b·s·h elements for each micro-batch that crosses to
    another rank, forward and backward (Narayanan et al. 2021, §3.2), and an all-reduce of the gradients that several
    ranks hold: a tied embedding's, and everything in DualPipe; of those of data-parallel ranks at each update."""
    try:
        plan = plan_of(workload, topology, schedule, chunks)
    except Unsupported:
        return None
    dp, e = topology.dp, workload.element_size
    sizes = {name: prod(shape) * e for name, shape in workload.model.shapes()}
    message = workload.tokens // dp // workload.micro_batches * workload.model.hidden_size * e
    totals = []
    for rank, actions in enumerate(plan.actions):
        receivers = (consumer(action, plan) for action in actions)
        sent = message * sum(r is not None and plan.rank_of[r.stage] != rank for r in receivers)
        held = {name: len(ranks) for name, ranks in homes(workload.model, plan).items() if rank in ranks}
        shared = sum(2 * (n - 1) / n * sizes[name] for name, n in held.items())
        updates = sum(action.kind == "U" for action in actions) or 1
        totals.append(sent + shared + updates * 2 * (dp - 1) / dp * sum(sizes[name] for name in held))
    return max(totals)


def bubble(
    workload: Workload, topology: Topology, schedule: str, chunks: int = 2, times: Mapping[str, float] | None = None
) -> float | None:
    """Idle ÷ total time with m micro-batches whose stages take F, B and W (``times``; by default 1, 1 and 1, or 1 and
    2 where the backward pass is not split). A V has two half stages a rank.

        GPipe, 1F1B                    (p − 1)(F + B)                  Narayanan et al. 2021, §2.2
        PipeDream, 2BW                 (p − 1)(F + B)                  once a step, not once an update
        interleaved, breadth-first     (p − 1)(F + B) a chunk, which is a v-th of the layers
        ZB-H1, and interleaved         (p − 1)(F + B − W)              Qi et al. 2023, §2.3
        ZB-V                           (p − 1) F of half a stage: the first micro-batch must arrive, the last come back
        DualPipe                       (p/2 − 1)(F + 2B − W)           DeepSeek-AI 2024, table 2: F&B + B − 3W; its B is
        DualPipeV                      (p − 1)(F + 2B − W)             B + W, and F&B is F + B + W: nothing is hidden

    PipeDream makes m updates in a step, 2BW m/p, without idling for one: the first fills the pipeline, the last drains
    it. With a flush at each of m/p updates, as GPipe's on p micro-batches, (p − 1)/(2p − 1) of the time would be idle.

    Those of ZB-V and DualPipe are promised for F = B = W only: None where they differ by more than a twentieth.
    """
    try:
        plan = plan_of(workload, topology, schedule, chunks)
    except Unsupported:
        return None
    p, m = topology.pp, workload.micro_batches
    split_backward = any(action.kind == "W" for action in plan.actions[0])
    t = times or ({"F": 1.0, "B": 1.0, "W": 1.0} if split_backward else {"F": 1.0, "B": 2.0, "W": 0.0})
    f, b, w = t["F"], t["B"], t["W"] if split_backward else 0.0
    if schedule in EQUAL_TIMES and max(t.values()) > 1.05 * min(t.values()):
        return None
    each = len(plan.rank_of) // p if schedule != "dual_pipe" else 1
    work = m * each * (f + b + w)
    overlapped = f + 2 * b - w
    idle = {"zb_v": f * (p - 1), "dual_pipe_v": (p - 1) * overlapped, "dual_pipe": (p / 2 - 1) * overlapped}
    lost = idle.get(schedule, (p - 1) * (f + b - w if split_backward else f + b))
    return lost / (work + lost)


def in_flight(workload: Workload, topology: Topology, schedule: str, chunks: int = 2, times: object = None) -> float:
    """The most micro-batches whose activations a rank keeps; one in one of v stages counts 1/v.

    m (GPipe, breadth-first); min(p, m) (1F1B, ZB-H1, ZB-V); (1 + (p − 1)/(pv)) p (interleaved; Narayanan et al. 2021,
    §2.2); p + 1 of half as many layers (DualPipe), half a one more than ZB-V (DualPipeV).
    """
    p, m = topology.pp, workload.micro_batches
    looped = p + (p - 1) / chunks
    most = {"gpipe": m, "looped_bfs": m, "interleaved": looped, "interleaved_zb": looped}
    most |= {"dual_pipe": (p + 1) / 2, "dual_pipe_v": p + 0.5}
    return float(min(m, most.get(schedule, p)))
