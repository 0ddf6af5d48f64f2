"""verl's FlopsCounter counts the lookup of embeddings as a product with the whole vocabulary.

A user reads MFU from verl's log. With twice the vocabulary a step has one more product of its tokens with as many rows:
the head's. The counter adds two. The control is twice the width of the MLP, which adds three products a layer.
"""

import sys
from math import inf
from unittest.mock import patch

from transformers import Qwen3Config
from verl.utils import flops_counter

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TOKENS = 8


def flops(**sizes):
    with patch.object(flops_counter, "get_device_flops", lambda: inf):  # the peak, which takes a GPU's name
        return round(flops_counter.FlopsCounter(Qwen3Config(**SIZES | sizes)).estimate_flops([TOKENS], 1.0)[0] * 1e12)


try:
    before = flops()
    layers = 6 * TOKENS * 2 * 3 * 64 * 128
    if flops(intermediate_size=256) - before != layers:
        raise RuntimeError(f"an MLP of twice the width adds {flops(intermediate_size=256) - before:,}, not {layers:,}")
    expected, found = 6 * TOKENS * 512 * 64, flops(vocab_size=1024) - before
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {expected:,} more with twice the vocabulary, the head's product")
print(f"found    {found:,} more")
print("still there" if found != expected else "gone")
sys.exit(1 if found != expected else 0)
