"""Diffusers: `save_lora_weights` loses α, and the adapter is loaded at another strength.

The tensors of `get_peft_model_state_dict` do not say α. Without `unet_lora_adapter_metadata` it is in no file, and
loading takes it to be the rank, without a warning.
"""

import logging
import sys
import tempfile
import warnings

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def model():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=12, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


@torch.no_grad()
def seen(unet):
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 12, generator=generator)
    return unet(latents, torch.tensor([3, 700]), text).sample


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    trained, targets = model(), ["to_q", "to_k", "to_v", "to_out.0"]
    trained.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=targets))
    expected, off = seen(trained), {}
    config = trained.peft_config["default"]
    for name, more in (("with metadata", {"unet_lora_adapter_metadata": config.to_dict()}), ("without", {})):
        with tempfile.TemporaryDirectory() as folder:
            StableDiffusionPipeline.save_lora_weights(folder, get_peft_model_state_dict(trained), **more)
            loaded = model()
            loaded.load_lora_adapter(folder, prefix="unet", weight_name="pytorch_lora_weights.safetensors")
        (config,) = loaded.peft_config.values()
        off[name] = float((seen(loaded) - expected).norm() / expected.norm())
        print("expected r = 4, α = 8")
        print(f"found    r = {config.r}, α = {config.lora_alpha}, a result that is off by {off[name]:.1%}  ({name})")
    if off["with metadata"] > 1e-4:
        raise RuntimeError("the control is off as well")
    wrong = off["without"] > 1e-2
    print("still there" if wrong else "gone")
    sys.exit(wrong)
