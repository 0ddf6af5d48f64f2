"""The promises of a grouped product, and its FLOPs."""

from harness.spec import Topology, Workload
from impls.acceleration.grouped_gemm.sizes import sizes


def saved(workload: Workload, topology: Topology, layout: str, scaled: bool) -> float:
    """Bytes kept from the forward to the backward pass beyond the inputs: the output alone, rows · n elements. A padded
    or gathered copy of x would break this law."""
    size = sizes(workload, layout)
    return float(size.held * size.n * workload.element_size)


def flops(workload: Workload, layout: str, scaled: bool) -> float:
    """2·m·n·k of the valid rows for each product: y, and where there is a backward pass dx and dw."""
    size = sizes(workload, layout)
    return 2.0 * sum(size.rows) * size.n * size.k * (1 if scaled else 3)
