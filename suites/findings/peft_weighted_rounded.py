"""add_weighted_adapter(combination_type="cat") on a bfloat16 model rounds the adapters, which are float32.

A user combines two adapters of a bfloat16 model. PEFT keeps adapters in float32 there (autocast_adapter_dtype), but
makes the combined one in the base's precision and copies the factors into it. The type "svd" replaces the tensors, and
keeps their digits.
"""

import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

warnings.simplefilter("ignore")
WEIGHTS = [0.7, 0.3]


@torch.no_grad()
def off(dtype):
    """The precision of the combined adapter, and how far it is from the weighted sum."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(32, 32)).to(dtype), config, adapter_name="a")
    model.add_adapter("b", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(0, 0.3)  # as if trained
    layer = model.base_model.model[0]
    expected = sum(w * layer.get_delta_weight(name) for w, name in zip(WEIGHTS, "ab", strict=True))
    model.add_weighted_adapter(["a", "b"], WEIGHTS, "cat", combination_type="cat")
    found = layer.get_delta_weight("cat").float()
    return layer.lora_A["a"].weight.dtype, layer.lora_A["cat"].weight.dtype, (found - expected).norm() / expected.norm()


def main():
    _, _, control = off(torch.float32)
    single, combined, found = off(torch.bfloat16)
    print(f"expected {single} as of the single adapters, and an error below 1e-5 (float32 base: {control:.1e})")
    print(f"found    {combined}, and an error of {found:.1e}")
    if control > 1e-5:
        raise RuntimeError("the control, a base in float32, is wrong too")
    return found > 1e-4


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
