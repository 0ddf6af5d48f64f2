"""The sizes of latent attention, derived from a workload's model, which has none of its own."""

from typing import NamedTuple

from harness.spec import ModelConfig


class Sizes(NamedTuple):
    heads: int
    query_rank: int
    latent: int  # the rank of keys and values
    plain: int  # of a head's query and key, without positions; also of its value
    rotary: int  # of a head's query, and of the single key of all heads


def sizes(model: ModelConfig) -> Sizes:
    """About the proportions of DeepSeek-V3: ranks of a half and a quarter of the hidden size, half as many dimensions
    with positions as without."""
    h, d = model.hidden_size, model.head_dim
    return Sizes(model.num_attention_heads, h // 2 // 2 * 2, h // 4 // 2 * 2, d, d // 4 * 2)
