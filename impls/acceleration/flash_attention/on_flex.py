"""PyTorch's FlexAttention, compiled: the mask is a function of positions, turned into the list of tiles to compute.

There is no backward pass on the CPU, hence the card's requirement of CUDA."""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from harness.spec import Function, Topology, Unsupported, Workload


def _not_in_the_future(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def build(workload: Workload, topology: Topology, causal: bool) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("FlexAttention's kernels take fp32 and bf16, not fp64")
    compiled = torch.compile(flex_attention, dynamic=False)

    @cache
    def mask(length: int, device: torch.device) -> BlockMask:
        return create_block_mask(_not_in_the_future, None, None, length, length, device=str(device))

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        tiles = mask(query.shape[2], query.device) if causal else None
        return {"output": compiled(query, key, value, block_mask=tiles, enable_gqa=key.shape[1] < query.shape[1])}

    return attention
