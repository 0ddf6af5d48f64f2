"""Which layouts of the parameters this topic runs."""

from harness.spec import Topology, Unsupported, Workload

SCHEDULE = "1f1b"  # of a pipeline


def check(topology: Topology, stage: int) -> None:
    """Unsupported, with the reason, where a topology and a ZeRO stage (0: none) do not go together here."""
    if topology.world_size > max(topology.dp * topology.tp, topology.pp):
        raise Unsupported(f"clipping on {topology}: that composition is the topic hybrid_3d's")
    if stage and topology.tp * topology.pp * topology.ep > 1:
        raise Unsupported(f"ZeRO's stage {stage} on {topology}: that composition is the topic hybrid_3d's")


def pipelined(workload: Workload, topology: Topology) -> Workload:
    """With as many micro-batches as 1F1B takes at least."""
    return workload.with_(micro_batches=max(workload.micro_batches, topology.pp))
