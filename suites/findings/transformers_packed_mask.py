"""An attention mask of ones, or a cache, makes the documents of a packed row attend to each other.

A user packs documents into one row with position_ids that start anew, and passes the mask that a tokenizer gives.
The documents are told apart by their positions only where there is neither mask nor cache; use_cache is on by default.
"""

import logging
import sys
import warnings

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
FIRST, SECOND = 5, 7  # tokens of the two documents


@torch.no_grad()
def main():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, initializer_range=0.3)).eval()
    row = torch.randint(0, 64, (1, FIRST + SECOND))
    packed = {"input_ids": row, "position_ids": torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None]}
    expected = model(input_ids=row[:, FIRST:]).logits  # the second document by itself
    ways = {
        "no mask, no cache": {"use_cache": False},
        "a mask of ones": {"use_cache": False, "attention_mask": torch.ones_like(row)},
        "a cache": {},
    }
    off = {}
    for name, options in ways.items():
        logits = model(**packed, **options).logits[:, FIRST:]
        off[name] = ((logits - expected).norm() / expected.norm()).item()
    control = off["no mask, no cache"]
    print(f"expected logits of the second document as by itself (no mask, no cache: off by {control:.1e})")
    print(f"found    with a mask of ones off by {off['a mask of ones']:.2f}, with a cache off by {off['a cache']:.2f}")
    if control > 1e-3:
        raise RuntimeError("the control, neither mask nor cache, is wrong too")
    return max(off.values()) > 1e-3


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
