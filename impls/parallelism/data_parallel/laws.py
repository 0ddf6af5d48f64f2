"""The promises of data parallelism."""

from harness.spec import Topology, Workload

ADAM_BYTES = {"sgd": 0, "adamw": 8}  # two float32 moments


def states(workload: Workload, topology: Topology, **variant: object) -> float:
    """Bytes of weights, gradients, masters and moments: nothing is sharded (Rajbhandari et al. 2020, §3.1)."""
    master = 4 if workload.element_size < 4 else 0
    return float(workload.model.parameters * (2 * workload.element_size + master + ADAM_BYTES[workload.optimizer]))


def traffic(workload: Workload, topology: Topology, **variant: object) -> float | None:
    """Bytes a rank sends in a step: one ring all-reduce of the gradients, 2(N−1)/N · Ψ elements."""
    if topology.dp == 1:
        return None
    share = 2 * (topology.dp - 1) / topology.dp
    return share * workload.model.parameters * workload.element_size
