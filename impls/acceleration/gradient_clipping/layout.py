"""Which layouts of the parameters this topic runs."""

from harness.spec import Topology, Unsupported


def check(topology: Topology, stage: int) -> None:
    """Unsupported, with the reason, where a topology and a ZeRO stage (0: none) do not go together here."""
    if topology.world_size > topology.dp * topology.tp or topology.ep > 1:
        raise Unsupported(f"clipping on {topology}: the topic has data and tensor parallelism only")
    if stage and topology.tp > 1:
        raise Unsupported(f"ZeRO's stage {stage} on {topology}: that composition is the topic hybrid_3d's")
