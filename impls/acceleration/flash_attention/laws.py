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
