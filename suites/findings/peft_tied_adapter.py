"""PEFT's tied adapter of embedding and head is two parameters, and on a half-precision model two adapters.

A user trains LoRA on the embedding of a model with tied weights and sets ensure_weight_tying. PEFT makes a second
parameter for the head, the transpose of the embedding's in the same memory: AdamW steps that memory twice, each time
with moments of a part of the gradient. Casting the adapter, as PEFT does for a base in bfloat16 or float16, or moving
the model to another device, gives each its own memory: embedding and head then learn different things.
"""

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
LR = 0.01


def adapted(dtype, optimizer):
    """How far embedding's and head's A are apart after a step, over their size; and the largest step of an element."""
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True)).to(dtype)
    config = LoraConfig(r=4, target_modules=["embed_tokens"], ensure_weight_tying=True, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    own = model.base_model.model.model.embed_tokens.lora_embedding_A["default"]
    of_head = model.base_model.model.lm_head.lora_B["default"].weight
    with torch.no_grad():
        own.normal_(0, 0.3)  # as if trained, and as loaded: both the same
        of_head.copy_(own.T)
    before, ids = own.detach().clone(), torch.arange(16)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0).step()
    return ((of_head.T - own).norm() / own.norm()).item(), (own - before).abs().max().item()


def main():
    control, _ = adapted(torch.float32, torch.optim.SGD)
    _, step = adapted(torch.float32, torch.optim.AdamW)
    apart, _ = adapted(torch.bfloat16, torch.optim.AdamW)
    print(f"expected one adapter for both ends, and a first step of 1.00 lr (SGD in float32: {control:.1e} apart)")
    print(f"found    AdamW: a step of {step / LR:.2f} lr in float32; two adapters, {apart:.3f} apart, in bfloat16")
    if control:
        raise RuntimeError("the control, float32 with SGD, is apart too")
    return step > 1.5 * LR or apart > 0


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
