"""PEFT merges the LoRA of a tied embedding twice: W + 2Δ instead of W + Δ.

A user trains LoRA on the embedding of a model with tied weights, sets ensure_weight_tying and merges it. Embedding
and head have one weight and share one adapter; merge_and_unload() adds the adapter's Δ to the weight for each of both.
"""

import copy
import logging
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


@torch.no_grad()
def main():
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True)).eval()
    weight, by_hand = base.lm_head.weight.clone(), copy.deepcopy(base)
    config = LoraConfig(r=4, target_modules=["embed_tokens"], ensure_weight_tying=True, task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(0, 0.3)  # as if trained
    ids = torch.arange(16)[None]
    adapted = model(input_ids=ids).logits
    delta = base.model.embed_tokens.get_delta_weight("default")
    by_hand.lm_head.weight += delta  # the one weight that embedding and head have
    control = (by_hand(input_ids=ids).logits - adapted).norm() / adapted.norm()
    merged = model.merge_and_unload()
    factor = ((merged.lm_head.weight - weight) * delta).sum() / delta.square().sum()
    off = (merged(input_ids=ids).logits - adapted).norm() / adapted.norm()
    print(f"expected merged weight W + 1.00 Δ; it gives the adapted model's logits (off by {control:.1e})")
    print(f"found    merged weight W + {factor:.2f} Δ; logits off by {off:.2f}")
    if control > 1e-3:
        raise RuntimeError("W + Δ, added by hand, does not give the adapted model's logits")
    return bool(off > 1e-3)


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
