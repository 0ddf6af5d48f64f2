"""The Trainer's total_flos counts every expert for every token.

A user reads total_flos in trainer_state.json after training a mixture of experts. A token is sent to one of sixteen
experts; a dense model whose MLP has the size of an expert computes as much but for the routers, and is the control.
"""

import sys
from types import SimpleNamespace

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer

SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False}
EXPERTS, WIDTH, TOKENS = 16, 128, 8


def total_flos(model):
    """Of one step, as the Trainer adds it up."""
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    return Trainer.floating_point_ops(SimpleNamespace(model=model), {"input_ids": ids})


try:
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": 1, "moe_intermediate_size": WIDTH}
    layers = {"decoder_sparse_step": 1, "mlp_only_layers": []}
    dense = total_flos(Qwen3ForCausalLM(Qwen3Config(**SIZES, intermediate_size=WIDTH)))
    found = total_flos(Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, **layers, intermediate_size=WIDTH)))
    routers = 6 * TOKENS * SIZES["num_hidden_layers"] * SIZES["hidden_size"] * EXPERTS
    if not 0 < routers < dense:
        raise RuntimeError(f"the dense model counts as {dense:,}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {dense + routers:,}: as a dense model with one expert, and routers")
print(f"found    {found:,}, {found / (dense + routers):.1f} times as many")
wrong = found != dense + routers
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
