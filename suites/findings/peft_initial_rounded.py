"""PiSSA and OLoRA under a bfloat16 model: the adapters are rounded after the base has given up their exact part.

A user adds an adapter that starts as a part of the weight: W = W' + s B A. PEFT computes A and B in float32 and takes
s B A out of W, then rounds A and B to the base's bfloat16 and widens them again (autocast_adapter_dtype), so the
adapted model is not the base model before its first step. Widened adapters could have kept their digits.
"""

import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

warnings.simplefilter("ignore")


@torch.no_grad()
def off(kind, dtype):
    """How far W' + s B A is from W, relative to W; and how far it would be with A and B as they were computed."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    values = torch.tensor([0.5**i for i in range(64)])  # nearly all of W is in the adapter: its rest is small
    layer.weight.copy_(torch.linalg.qr(layer.weight)[0] * values @ torch.linalg.qr(torch.randn(64, 64))[0])
    whole = layer.to(dtype).weight.double()
    config = LoraConfig(r=8, lora_alpha=8, init_lora_weights=kind, target_modules=["0"])
    adapted = get_peft_model(nn.Sequential(layer), config).base_model.model[0]
    a, b = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    start = adapted.base_layer.weight.double() + b.double() @ a.double()
    return a.dtype, ((start - whole).norm() / whole.norm()).item()


def main():
    wrong = False
    for kind in ("pissa", "olora"):
        _, control = off(kind, torch.float32)
        dtype, found = off(kind, torch.bfloat16)
        print(f"expected {kind}: below 1e-4 of W, as the rest of W alone is bfloat16 (float32 base: {control:.1e})")
        print(f"found    {kind}: {found:.1e} of W, with adapters in {dtype}")
        if control > 1e-5:
            raise RuntimeError("the control, a base in float32, is wrong too")
        wrong |= dtype == torch.float32 and found > 1e-4
    return wrong


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
