"""PyTorch's FlexAttention, compiled for decoding: the lengths are in the mask, which lists the tiles to compute.

It runs on CPUs, too, but compiles for half a minute there, hence the card's requirement of CUDA."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from harness.spec import Function, Topology, Unsupported, Workload


def build(workload: Workload, topology: Topology, queries: int, unified: bool, paged: bool) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("FlexAttention's kernels take fp32 and bf16, not fp64")
    compiled = torch.compile(flex_attention, dynamic=False)

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))
        lengths = inputs["lengths"]

        def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return column < lengths[batch] - (queries - 1 - row)

        tiles = create_block_mask(visible, len(lengths), None, queries, key.shape[2], device=str(key.device))
        grouped = key.shape[1] < query.shape[1]
        return {"output": compiled(query, key, value, block_mask=tiles, enable_gqa=grouped).transpose(1, 2)}

    return decode
