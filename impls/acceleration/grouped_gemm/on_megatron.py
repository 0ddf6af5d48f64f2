"""Megatron-Core's GroupedMLP, its product alone: the operator gmm of the grouped_gemm library.

GroupedMLP has the weights as [g, k, n]; the operator takes them transposed, too."""

from collections.abc import Mapping

import torch
from megatron.core.transformer.moe import grouped_gemm_util
from torch import Tensor

from harness.spec import Function, Topology, Unsupported, Workload


def build(workload: Workload, topology: Topology, layout: str, scaled: bool) -> Function:
    if workload.dtype != "bf16":
        raise Unsupported(f"GroupedMLP supports bf16 only, not {workload.dtype}")
    grouped_gemm_util.assert_grouped_gemm_is_available()

    def product(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w = inputs["x"], inputs["w"]
        tokens_per_expert = inputs["sizes"].to("cpu", torch.int64)  # as the dispatcher hands it to GroupedMLP
        y = grouped_gemm_util.ops.gmm(x.flatten(0, -2), w, tokens_per_expert, trans_b=True)
        return {"y": y.view(*x.shape[:-1], -1)}

    return product
