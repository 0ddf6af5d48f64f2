"""AdaLoRA on a bfloat16 model trains the number of ranks, by which it divides.

A user adds AdaLoraConfig to a model in bfloat16 and gives the optimizer all parameters that require a gradient, as
trainers do. ranknum, a constant with requires_grad=False, is cast to the base's precision, which makes a new parameter
of it: it requires a gradient, is trained, and scales every update. It is not saved, so a loaded adapter has the
constant again.
"""

import sys
import warnings

import torch
from peft import AdaLoraConfig, get_peft_model
from torch import nn

warnings.simplefilter("ignore")
RANK = 4


def trained(dtype):
    """ranknum after five steps, and whether it is among the trainable parameters."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(32, 32, bias=False)).to(dtype)
    config = AdaLoraConfig(init_r=RANK, target_r=2, total_step=10, target_modules=["0"])
    model = get_peft_model(base, config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_E["default"].fill_(1.0)  # as if trained
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
    for _ in range(5):
        model(torch.randn(8, 32, dtype=dtype)).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer.ranknum["default"].item(), layer.ranknum["default"].requires_grad


def main():
    control, _ = trained(torch.float32)
    found, required = trained(torch.bfloat16)
    print(f"expected ranknum {RANK}, as on a float32 model ({control})")
    print(f"found    ranknum {found:.3f} after five steps on a bfloat16 model, requires_grad={required}")
    if control != RANK:
        raise RuntimeError("the control, a model in float32, is wrong too")
    return found != RANK


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
