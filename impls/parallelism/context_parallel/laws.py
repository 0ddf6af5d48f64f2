"""The promises of context parallelism: the traffic of its exchanges and its ring, and activations ÷ N.

Per rank and layer, with e bytes per element, n = s/N positions of each of b sequences and d a head's width:

    Ulysses   TOPICS       4·s·h·d/N, for queries, keys, values and output, forward and again backward
              here         (U−1)/U of b·n·d·(2h + 2·max(h_k, U)): a rank's own part stays, GQA has fewer key heads, and
                           fewer of them than ranks go to several
    ring      R−1 hops     2·b·(s/R)·d·h_k/U elements, keys and values, forward and again backward; and their gradients
                           backward, in the dtype of their sum, float32 at least
"""

from harness.spec import Topology, Workload
from impls.parallelism.context_parallel.layouts import documents, padded


def _sizes(workload: Workload, topology: Topology, layout: str, group: int, packed: bool) -> tuple[int, int, int]:
    """R, U, and the positions of a rank, padding included, of all sequences together: b·n."""
    exchange = group or topology.cp
    ring = topology.cp // exchange
    lengths = [padded(length, layout, ring, exchange) for length in documents(workload, packed)]
    return ring, exchange, sum(lengths) * (1 if packed else workload.batch_size) // topology.cp


def _wide(workload: Workload) -> int:
    """Bytes per element of a sum: float32, or float64 if everything is."""
    return max(4, workload.element_size)


def traffic(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> float | None:
    """Bytes that a rank sends, forward and backward. None on one rank."""
    ring, exchange, tokens = _sizes(workload, topology, layout, group, packed)
    if topology.cp == 1:
        return None
    model, element = workload.model, workload.element_size
    kv_heads = max(model.num_key_value_heads, exchange) if exchange > 1 else model.num_key_value_heads
    column = tokens * model.head_dim  # elements of one head on one rank
    exchanged = 2 * (exchange - 1) / exchange * column * 2 * (model.num_attention_heads + kv_heads) * element
    return exchanged + _rings(ring, 2 * kv_heads * column, element, _wide(workload))


def _rings(ring: int, keys_and_values: int, element: int, wide: int) -> float:
    return (ring - 1) * keys_and_values * (2 * element + wide)


def across_groups(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> float | None:
    """The bytes of these that leave a group of neighbours, such as a node: only the ring's. If all ranks are one group,
    or each rank is a group, all of them."""
    if group in (0, 1):
        return traffic(workload, topology, layout, group, packed)
    ring, exchange, tokens = _sizes(workload, topology, layout, group, packed)
    kv_heads = max(workload.model.num_key_value_heads, exchange)
    return _rings(ring, 2 * kv_heads * tokens * workload.model.head_dim, workload.element_size, _wide(workload))


def saved(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> float:
    """Bytes kept from the forward to the backward pass beyond the inputs, an N-th of one rank's: the output and one
    log-sum-exp per row; with an exchange also the inputs and outputs of the attention in it. If there are fewer key
    heads than ranks that exchange, their copies are also kept, and the amount is more than an N-th."""
    _, exchange, tokens = _sizes(workload, topology, layout, group, packed)
    model, element = workload.model, workload.element_size
    heads, kv_heads = model.num_attention_heads, max(model.num_key_value_heads, exchange)
    columns = 3 * heads + 2 * kv_heads if exchange > 1 else heads
    return float(tokens * (columns * model.head_dim * element + heads * _wide(workload)))
