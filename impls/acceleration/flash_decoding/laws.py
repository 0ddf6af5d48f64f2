"""The promises of decoding, and its FLOPs."""

from harness.spec import Topology, Workload
from impls.acceleration.flash_decoding.sizes import lengths, seen


def saved(workload: Workload, topology: Topology, queries: int, unified: bool, paged: bool) -> float:
    """Bytes held after the call: the output alone. The splits' own outputs are merged and released."""
    model = workload.model
    rows = workload.batch_size * queries * model.num_attention_heads
    return float(rows * model.head_dim * workload.element_size)


def flops(workload: Workload, queries: int, unified: bool, paged: bool) -> float:
    """2·d for each key that a query of any head sees, in QKᵀ and in PV."""
    model = workload.model
    pairs = sum(seen(length, queries) for length in lengths(workload))
    return 4.0 * pairs * model.num_attention_heads * model.head_dim


def cache_bytes(workload: Workload) -> int:
    """Bytes of the keys and values of all cached tokens."""
    model = workload.model
    return 2 * sum(lengths(workload)) * model.num_key_value_heads * model.head_dim * workload.element_size
