"""Projections of queries, keys and values in one matrix, as in the GPT layers of Megatron-Core and DeepSpeed."""

import torch
from torch import Tensor

from harness.spec import ModelConfig


def pack(parts: list[Tensor], config: ModelConfig) -> Tensor:
    """This rank's q, k, v in Megatron's layout, [groups · (a/k + 2) · d, h]: each key/value head follows its query
    heads. Everything else (gate and up, or a single tensor) is stacked."""
    if len(parts) < 3:
        return torch.cat(parts)
    groups = parts[1].shape[0] // config.head_dim
    return torch.cat([part.view(groups, -1, part.shape[-1]) for part in parts], 1).flatten(0, 1)


def unpack(fused: Tensor, count: int, config: ModelConfig) -> list[Tensor]:
    """The inverse of :func:`pack` for ``count`` parts."""
    if count < 3:
        return list(fused.chunk(count))
    d, heads = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    parts = fused.view(-1, (heads + 2) * d, fused.shape[-1]).split((heads * d, d, d), 1)
    return [part.flatten(0, 1) for part in parts]
