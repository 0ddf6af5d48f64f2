"""The Trainer's total_flos lacks the product with the vocabulary if the embeddings are tied.

A user compares runs by total_flos, or computes MFU from it. A head multiplies with the vocabulary whether it shares its
matrix with the embeddings or not, but a shared matrix is left out as an embedding. The control is the untied model.
"""

import sys
from types import SimpleNamespace

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TOKENS = 8


def total_flos(tied):
    """Of one step, as the Trainer adds it up."""
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=tied))
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    return Trainer.floating_point_ops(SimpleNamespace(model=model), {"input_ids": ids})


try:
    untied, tied = total_flos(False), total_flos(True)
    head = 6 * TOKENS * SIZES["vocab_size"] * SIZES["hidden_size"]
    if untied <= head:
        raise RuntimeError(f"the untied model counts as {untied:,}, fewer than its head's {head:,}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {untied:,}, as with a head of its own, whose product is {head:,}")
print(f"found    {tied:,}")
print("still there" if tied != untied else "gone")
sys.exit(1 if tied != untied else 0)
