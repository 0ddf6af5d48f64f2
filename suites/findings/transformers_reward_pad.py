"""Sequence classifiers score the token before the end where the padding token is the end token.

A user trains a reward model with pad_token = eos_token, as usual for models without a padding token. The model looks
for the last token that is not the padding token by its id, not by the attention mask, and stops before the end.
"""

import logging
import sys
import warnings

import torch
from transformers import Qwen3Config, Qwen3ForSequenceClassification

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
EOS, END = 1, 3  # the text's end token stands at position 3


@torch.no_grad()
def scored_position(pad):
    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(Qwen3Config(**SIZES, **HEADS, num_labels=1, pad_token_id=pad)).eval()
    text = {"input_ids": torch.tensor([[5, 6, 7, EOS, pad, pad]]), "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    scores = model.score(model.model(**text).last_hidden_state)[0, :, 0]
    return (scores - model(**text).logits[0, 0]).abs().argmin().item()


def main():
    control, found = scored_position(pad=0), scored_position(pad=EOS)
    print(f"expected score of position {END}, the end token (with a padding token of its own: {control})")
    print(f"found    score of position {found} with pad_token = eos_token")
    if control != END:
        raise RuntimeError("the control, a padding token of its own, is wrong too")
    return found != END


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
