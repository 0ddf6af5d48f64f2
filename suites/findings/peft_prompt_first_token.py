"""Prompt tuning and P-tuning count the first token of a text in the loss; no other training of a causal LM does.

A user trains with labels that are a copy of the tokens, as for any causal language model of Transformers: the model
shifts them, so the first token, which nothing precedes, has no term. PeftModelForCausalLM.forward() puts ignored labels
for the virtual tokens before them, and after the shift the last virtual token predicts the first token.
"""

import logging
import sys
import warnings

import torch
import torch.nn.functional as F
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
LENGTH, VIRTUAL = 8, 4


@torch.no_grad()
def counted(config):
    """The loss of PEFT's model, and those of its own logits with and without the first token."""
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS)).eval()
    base.lm_head.weight.normal_(0, 0.5)
    model = get_peft_model(base, config(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL))
    ids = torch.randint(SIZES["vocab_size"], (2, LENGTH))
    out = model(input_ids=ids, labels=ids)
    logits = out.logits[:, -LENGTH - 1 : -1] if out.logits.shape[1] > LENGTH else None
    without = F.cross_entropy(out.logits[:, -LENGTH:-1].flatten(0, 1), ids[:, 1:].flatten())
    every = without if logits is None else F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    return out.loss.item(), without.item(), every.item()


def main():
    control, expected, _ = counted(PrefixTuningConfig)
    if abs(control - expected) > 1e-4 * expected:
        raise RuntimeError("the control, prefix tuning, does not have the loss of tokens 2 to 8 either")
    print(f"(prefix tuning: {control:.4f}, and tokens 2 to 8 by its logits {expected:.4f})")
    wrong = False
    for config in (PromptTuningConfig, PromptEncoderConfig):
        found, expected, every = counted(config)
        print(f"expected {config.__name__}: {expected:.4f}, the loss of tokens 2 to 8")
        print(f"found    {config.__name__}: {found:.4f}; tokens 1 to 8 have {every:.4f}")
        wrong |= abs(found - expected) > 1e-3 * expected
    return wrong


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
