"""The promise of adapters under tensor parallelism: how little they add to the traffic of the block."""

from harness.spec import Topology, Workload


def traffic(workload: Workload, topology: Topology, rank: int, alpha: float, low: bool) -> float | None:
    """Bytes that a rank sends, each all-reduce in a ring: b·s·h elements forward (g) and backward (f) without any
    adapter; and the gradients of A_up and B_down, r·h each, or b·s·r elements forward and backward. None for one rank.

    The first is less for more than h tokens a step, and does not grow with them."""
    n, tokens, h = topology.tp, workload.tokens, workload.model.hidden_size
    if n == 1:
        return None
    added = 2 * tokens * rank if low else 2 * rank * h
    return 2 * (n - 1) / n * (2 * tokens * h + added) * workload.element_size
