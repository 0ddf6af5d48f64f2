"""LoftQ's adapter is what rounding lost, but the layer multiplies it by lora_alpha/r.

A user starts a four-bit model by init_lora_weights="loftq" with lora_alpha = 2 r, as is usual. PEFT makes B A the best
approximation of W − Q and adds s B A with s = 2, so the adapted layer is as far from W as Q alone, and with a larger s
farther. PiSSA divides by s. PEFT rounds on the device "cuda", which is the CPU here.
"""

import sys
import warnings
from unittest import mock

import torch
from peft import LoftQConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

warnings.simplefilter("ignore")
RANK, honest = 8, Tensor.to


def on_cpu(self, *places, **options):
    if str(options.get("device", "")).startswith("cuda"):
        options["device"] = "cpu"
    return honest(self, *("cpu" if str(place).startswith("cuda") else place for place in places), **options)


@torch.no_grad()
def errors(alpha):
    """‖W − Q‖ and ‖W − Q − s B A‖, relative to ‖W‖."""
    torch.manual_seed(0)
    layer = nn.Linear(128, 128, bias=False)
    whole = layer.weight.clone()
    loftq = LoftQConfig(loftq_bits=4, loftq_iter=1)
    config = LoraConfig(r=RANK, lora_alpha=alpha, init_lora_weights="loftq", loftq_config=loftq, target_modules=["0"])
    with mock.patch.object(Tensor, "to", on_cpu):
        adapted = get_peft_model(nn.Sequential(layer), config).base_model.model[0]
    rest = whole - adapted.base_layer.weight
    left = rest - adapted.get_delta_weight("default")
    return (rest.norm() / whole.norm()).item(), (left.norm() / whole.norm()).item()


def main():
    _, control = errors(RANK)
    alone, found = errors(2 * RANK)
    print(
        f"expected error {control:.4f} of W, as with lora_alpha = r, below {alone:.4f} of rounding without an adapter"
    )
    print(f"found    error {found:.4f} of W with lora_alpha = 2 r")
    if control >= alone:
        raise RuntimeError("the control, lora_alpha = r, is wrong too")
    return found > 1.01 * control


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
