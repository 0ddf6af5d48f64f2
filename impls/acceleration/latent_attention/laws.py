"""The promise of latent attention with divided heads."""

from harness.spec import Topology, Workload
from impls.acceleration.latent_attention.sizes import sizes


def traffic(workload: Workload, topology: Topology, absorbed: bool) -> float:
    """Bytes that a rank sends. Forward: an all-reduce of the output, b·s·h elements. Backward: an all-reduce of the
    gradients of the tensors that all heads share, latents and rotary key, b·s·(r_q + r + d_R) elements (Shoeybi et al.
    2019, §3, where it comes before the down projections, has b·s·h)."""
    _, r_q, r, _, d_r = sizes(workload.model)
    n, each = topology.tp, workload.model.hidden_size + r_q + r + d_r
    return 2 * (n - 1) / n * workload.tokens * each * workload.element_size
