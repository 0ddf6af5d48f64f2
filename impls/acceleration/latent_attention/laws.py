"""What latent attention cut along its heads promises."""

from harness.spec import Topology, Workload
from impls.acceleration.latent_attention.sizes import sizes


def traffic(workload: Workload, topology: Topology, absorbed: bool) -> float:
    """Bytes that a rank sends: forward an all-reduce of the output, b·s·h elements; backward one of what all heads
    share, the gradients of latents and rotary key, b·s·(r_q + r + d_R) (Shoeybi et al. 2019, §3: before the latents
    were, b·s·h)."""
    _, r_q, r, _, d_r = sizes(workload.model)
    n, each = topology.tp, workload.model.hidden_size + r_q + r + d_r
    return 2 * (n - 1) / n * workload.tokens * each * workload.element_size
