"""The promises of sharding in groups of F ranks (Zhao et al. 2023, §3.2.2): ZeRO's laws for F ranks in each group, and
an all-reduce of every rank's shard of the gradients among the W/F groups."""

from harness.spec import Topology, Workload
from impls.parallelism.zero import laws


def states(workload: Workload, topology: Topology, group: int, stage: int = 3, two_hop: bool = False) -> float:
    """Bytes of model states on a rank: sharded F ways, however many ranks there are."""
    return laws.states(workload, Topology(dp=group), stage)


def traffic(workload: Workload, topology: Topology, group: int, stage: int = 3, two_hop: bool = False) -> float | None:
    """Bytes a rank sends in a step, inside its group and across groups."""
    inside = laws.traffic(workload, Topology(dp=group), stage) or 0.0
    return inside + across(workload, topology, group, stage, two_hop)


def across(workload: Workload, topology: Topology, group: int, stage: int = 3, two_hop: bool = False) -> float:
    """Bytes a rank sends to other groups: a ring all-reduce of Ψ/F elements over R = W/F replicas, 2(R−1)/R · Ψ/F.

    This happens for every micro-batch; in two hops, and in stage 1, once per step (Zhang et al. 2022, §3).
    """
    replicas, times = topology.dp // group, 1 if two_hop or stage == 1 else workload.micro_batches
    return times * 2 * (replicas - 1) / replicas * workload.model.parameters * workload.element_size / group
