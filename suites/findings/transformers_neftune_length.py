"""The Trainer's NEFTune takes the length of a row, padded or packed, for that of a text.

Its noise is α/√(L d), where L is the text's own length (Jain et al. 2023, algorithm 1).

A text alone in its row is the control.
"""

import logging
import sys
import warnings

import torch
from torch import nn
from transformers.integrations.neftune import neftune_post_forward_hook

logging.disable()
warnings.simplefilter("ignore")
ALPHA, D, L, ROW = 5.0, 64, 16, 256


def size(length):
    """The root mean square of the noise of the first L tokens in a row of this length, by α/√(3 L d)."""
    torch.manual_seed(0)
    embedding = nn.Embedding(8, D)
    nn.init.zeros_(embedding.weight)
    embedding.neftune_noise_alpha = ALPHA
    embedding.register_forward_hook(neftune_post_forward_hook)
    noise = embedding(torch.zeros(1, length, dtype=torch.long))[0, :L]
    return float(noise.square().mean().sqrt()) / (ALPHA / (3 * L * D) ** 0.5)


def main():
    control, found = size(L), size(ROW)
    print(f"expected noise of a text of {L} tokens 1.00 of the paper's (alone in its row: {control:.2f})")
    print(f"found    noise of a text of {L} tokens {found:.2f} of the paper's, padded or packed to {ROW}")
    if abs(control - 1) > 0.1:
        raise RuntimeError("the control, a text alone in its row, is wrong too")
    return abs(found - 1) > 0.1


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
