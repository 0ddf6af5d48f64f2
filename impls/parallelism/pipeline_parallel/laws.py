"""What pipeline parallelism promises: a part of the layers, and activations that travel between neighbours."""

from math import prod

from harness.spec import Topology, Workload
from impls.parallelism.pipeline_parallel.places import homes, plan_of
from impls.parallelism.pipeline_parallel.schedules import consumer
from impls.parallelism.tensor_parallel.laws import MOMENTS


def states(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> float | None:
    """Bytes of weights, gradients, masters and moments on the rank that holds most."""
    try:
        plan = plan_of(workload, topology, schedule, chunks)
    except ValueError:
        return None
    homes_, sizes = homes(workload.model, plan), {name: prod(shape) for name, shape in workload.model.shapes()}
    most = max(sum(sizes[n] for n, ranks in homes_.items() if rank in ranks) for rank in range(topology.pp))
    e = workload.element_size
    return float(most * (2 * e + (4 if e < 4 else 0) + MOMENTS[workload.optimizer]))


def traffic(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> float | None:
    """Bytes that the rank which sends most sends in a step: b·s·h elements for each micro-batch that crosses to
    another rank, forward and backward (Narayanan et al. 2021, §3.2), and an all-reduce of the gradients that several
    ranks hold: a tied embedding's, and everything in DualPipe."""
    try:
        plan = plan_of(workload, topology, schedule, chunks)
    except ValueError:
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
        totals.append(sent + shared + 2 * (dp - 1) / dp * sum(sizes[name] for name in held))
    return max(totals)
