"""add_weighted_adapter(combination_type="linear") does not add up adapters: it mixes A of one with B of another.

A user combines two LoRA adapters with weights, which should be w₁ B₁A₁ + w₂ B₂A₂. PEFT adds up the √w A and the √w B
apart and multiplies the sums, so that B₁A₂ and B₂A₁ come in. The type "cat" is exact.
"""

import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

warnings.simplefilter("ignore")
WEIGHTS = [0.7, 0.3]


@torch.no_grad()
def main():
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)), config, adapter_name="a")
    model.add_adapter("b", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(0, 0.3)  # as if trained
    layer = model.base_model.model[0]
    expected = sum(w * layer.get_delta_weight(name) for w, name in zip(WEIGHTS, "ab", strict=True))
    off = {}
    for kind in ("cat", "linear"):
        model.add_weighted_adapter(["a", "b"], WEIGHTS, kind, combination_type=kind)
        off[kind] = ((layer.get_delta_weight(kind) - expected).norm() / expected.norm()).item()
    found = layer.get_delta_weight("linear").norm()
    print(f"expected norm {expected.norm():.4f} of 0.7 B₁A₁ + 0.3 B₂A₂ (cat is off by {off['cat']:.1e})")
    print(f"found    norm {found:.4f} with linear, off by {off['linear']:.2f}")
    if off["cat"] > 1e-3:
        raise RuntimeError('the control, combination_type="cat", is wrong too')
    return off["linear"] > 1e-3


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
