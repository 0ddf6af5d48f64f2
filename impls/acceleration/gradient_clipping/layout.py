"""The parameter layouts of this topic."""

from harness.spec import Topology, Unsupported, Workload

SCHEDULE = "1f1b"  # micro-batches of a pipeline


def check(topology: Topology, stage: int) -> None:
    """Raises Unsupported, with the reason, for a topology and a ZeRO stage (0: none) that do not go together here."""
    if topology.world_size > max(topology.dp * topology.tp, topology.pp):
        raise Unsupported(f"clipping on {topology}: the topic hybrid_3d has that composition")
    if stage and topology.tp * topology.pp * topology.ep > 1:
        raise Unsupported(f"ZeRO's stage {stage} on {topology}: the topic hybrid_3d has that composition")


def pipelined(workload: Workload, topology: Topology) -> Workload:
    """The workload with as many micro-batches as 1F1B needs."""
    return workload.with_(micro_batches=max(workload.micro_batches, topology.pp))
