"""The promises of ZeRO (Rajbhandari et al. 2020, §5 and §7)."""

from harness.spec import Topology, Workload


def states(workload: Workload, topology: Topology, stage: int = 3) -> float:
    """Bytes of model states on a rank: 4Ψ+12Ψ/N, 2Ψ+14Ψ/N, 16Ψ/N for AdamW in mixed precision (§5.1-5.3), and the same
    shares for other recipes."""
    e, ranks = workload.element_size, topology.dp
    optimizer = (4 if e < 4 else 0) + (8 if workload.optimizer == "adamw" else 0)
    whole, sharded = {1: (2 * e, optimizer), 2: (e, e + optimizer), 3: (0, 2 * e + optimizer)}[stage]
    return workload.model.parameters * (whole + sharded / ranks)


def traffic(workload: Workload, topology: Topology, stage: int = 3) -> float | None:
    """Bytes a rank sends in a step: 2Ψ, 2Ψ, 3Ψ elements (§7.1, §7.2), each times (N−1)/N in a ring.

    From stage 2 on, each micro-batch's gradients are reduced; in stage 3 the weights are gathered twice for each one.
    """
    if topology.dp == 1:
        return None
    k = workload.micro_batches
    volume = {1: 2, 2: 1 + k, 3: 3 * k}[stage]
    return volume * workload.model.parameters * workload.element_size * (topology.dp - 1) / topology.dp
