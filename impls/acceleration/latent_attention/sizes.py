"""The sizes of latent attention that a workload's model, which has none, stands for."""

from typing import NamedTuple

from harness.spec import ModelConfig


class Sizes(NamedTuple):
    heads: int
    query_rank: int
    latent: int  # the rank of keys and values
    plain: int  # of a head's query and key, without positions; of its value too
    rotary: int  # of a head's query, and of the one key of all heads


def sizes(model: ModelConfig) -> Sizes:
    """In about the proportions of DeepSeek-V3's: ranks of a half and a quarter of the hidden size, half as many
    dimensions with positions as without."""
    h, d = model.hidden_size, model.head_dim
    return Sizes(model.num_attention_heads, h // 2 // 2 * 2, h // 4 // 2 * 2, d, d // 4 * 2)
