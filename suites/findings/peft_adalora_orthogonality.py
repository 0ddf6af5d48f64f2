"""AdaLoRA without a task_type trains without its orthogonality term.

A user makes an AdaLoraConfig and leaves task_type out, which is optional. PeftModel.forward() then calls the innermost
model and passes by AdaLoraModel.forward(), the one place that adds orth_reg_weight × ‖PᵀP − I‖ to the loss.
"""

import logging
import sys
import warnings

import torch
from peft import AdaLoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
WEIGHT = 0.5


@torch.no_grad()
def extra_loss(task_type):
    """The term by its definition, and what the loss of the wrapped model has more than that of the model inside."""
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS))
    config = {"init_r": 6, "target_r": 4, "total_step": 10, "target_modules": ["q_proj"], "orth_reg_weight": WEIGHT}
    model = get_peft_model(base, AdaLoraConfig(**config, task_type=task_type))
    distances = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            p.normal_(0, 0.3)
            gram = p @ p.T if "lora_A" in name else p.T @ p
            distances.append((gram - torch.eye(len(gram))).norm())
    ids = torch.arange(16)[None]
    extra = model(input_ids=ids, labels=ids).loss - model.get_base_model()(input_ids=ids, labels=ids).loss
    return WEIGHT * sum(distances).item() / len(distances), extra.item()


def main():
    expected, control = extra_loss("CAUSAL_LM")
    print(f"expected {expected:.4f} of orthogonality in the loss (task_type CAUSAL_LM: {control:.4f})")
    expected, found = extra_loss(None)
    print(f"found    {found:.4f} without task_type")
    if abs(control - expected) > 1e-3 * expected:
        raise RuntimeError("the control, task_type CAUSAL_LM, is wrong too")
    return abs(found - expected) > 1e-3 * expected


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
