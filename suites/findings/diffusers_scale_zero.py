"""Diffusers: one call with a scale of 0 resets the weight that `set_adapters` gave an adapter.

`cross_attention_kwargs={"scale": s}` multiplies the layers' scaling by s for the call and divides it afterwards; where
s is 0 it is set to 1 instead, whatever it was.
"""

import logging
import sys
import warnings

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig


def model():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=12, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    unet.set_adapters("default", weights=0.7)
    return unet


@torch.no_grad()
def seen(unet, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 12, generator=generator)
    return unet(latents, torch.tensor([3, 700]), text, cross_attention_kwargs={"scale": scale}).sample


def act(unet, scale):
    seen(unet, scale)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    off = {}
    for scale in (0.5, 0.0):  # the first is the control
        unet = model()
        before = seen(unet)
        act(unet, scale)
        off[scale] = float((seen(unet) - before).norm() / before.norm())
        print(f"expected the same result as before a call with a scale of {scale}")
        print(f"found one that is off by {off[scale]:.1%}")
    if off[0.5] > 1e-4:
        raise RuntimeError("the control is off as well")
    wrong = off[0.0] > 1e-2
    print("still there" if wrong else "gone")
    sys.exit(wrong)
