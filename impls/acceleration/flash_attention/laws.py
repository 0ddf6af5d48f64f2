"""The promises of FlashAttention (Dao et al. 2022, theorem 1; Dao 2023, algorithm 1)."""

from typing import Any

from harness.spec import Topology, Workload


def saved(workload: Workload, topology: Topology, outer: str = "queries", **variant: Any) -> float:
    """Bytes kept from the forward to the backward pass beyond the inputs: the output and one log-sum-exp per row,

        b · h · s · (d · element_size + 4)

    linear in s. FlashAttention-1 keeps maximum and sum, 8 bytes. Standard attention keeps the s × s probabilities as
    well and breaks this law.
    """
    model = workload.model
    rows = workload.batch_size * model.num_attention_heads * workload.sequence_length
    statistic = max(4, workload.element_size)  # float32, or float64 if the inputs are
    statistics = 2 if outer == "keys" else 1
    return float(rows * (model.head_dim * workload.element_size + statistics * statistic))


def flops(
    workload: Workload,
    causal: bool,
    keys: float = 1.0,
    window: int = 0,
    bottom_right: bool = False,
    packed: bool = False,
    **variant: Any,
) -> float:
    """2·d of a product for each key that a query of any head sees: two products forward, and five backward, of which
    one is QKᵀ again (Dao 2023, §4.1: the backward pass has 2.5 × the FLOPs of the forward pass)."""
    model, s = workload.model, workload.sequence_length
    lengths = packed_lengths(workload.tokens) if packed else [s] * workload.batch_size
    pairs = sum(_seen(n, round(keys * n), causal, window, bottom_right) for n in lengths)
    return 14.0 * pairs * model.num_attention_heads * model.head_dim


def _seen(queries: int, keys: int, causal: bool, window: int, bottom_right: bool) -> int:
    """Pairs of a query and a key that it sees."""
    if not causal:
        return queries * keys
    shift = keys - queries if bottom_right else 0
    last = [min(query + shift + 1, keys) for query in range(queries)]  # of the keys that a query sees, and one more
    first = [max(query + shift + 1 - window, 0) if window else 0 for query in range(queries)]
    return sum(max(stop - start, 0) for start, stop in zip(first, last, strict=True))


def packed_lengths(tokens: int) -> list[int]:
    """Lengths of packed documents: 1, 0, about a tenth, a half, and the rest of the tokens."""
    lengths = [1, 0, tokens // 10, tokens // 2]
    return [*lengths, tokens - sum(lengths)]
