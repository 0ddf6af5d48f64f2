"""Diffusers' UNet with PEFT's adapters, its DDPMScheduler and EMAModel; DistributedDataParallel averages gradients.

The loss is that of Diffusers' examples/text_to_image/train_text_to_image_lora.py, with compute_snr of its
training_utils. Latents and noise are float32, and so are adapters (``cast_training_params``).
"""

import tempfile
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel, cast_training_params, compute_snr
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from harness.spec import Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device, placed
from impls.common.weights import TORCH_DTYPES
from impls.engines.adapted import DataParallel
from impls.engines.adapted import fill as give
from impls.engines.peft import canonical, trained
from impls.finetuning.diffusion_lora import noise
from impls.finetuning.diffusion_lora.blocks import Sizes
from impls.finetuning.diffusion_lora.data import Pictures, share
from impls.finetuning.diffusion_lora.files import NAME
from impls.finetuning.diffusion_lora.shapes import AVERAGED, TARGETS, sizes, targets
from impls.finetuning.diffusion_lora.weights import fill, start

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}


def unet(sizes: Sizes) -> UNet2DConditionModel:
    attending = len(sizes.channels) - 1
    return UNet2DConditionModel(
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        norm_num_groups=sizes.groups,
        cross_attention_dim=sizes.text,
        attention_head_dim=sizes.heads,  # as in Stable Diffusion's config, where it is the number of heads
    )


def scheduler(prediction: str) -> DDPMScheduler:
    """Stable Diffusion's."""
    return DDPMScheduler(
        num_train_timesteps=noise.T,
        beta_start=noise.FIRST,
        beta_end=noise.LAST,
        beta_schedule="scaled_linear",
        prediction_type=PREDICTIONS[prediction],
        clip_sample=False,
    )


def load(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """The UNet's adapters, written and read again as at the end of the examples; for training they are float32."""
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    unet.delete_adapters("default")
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
        where = {"weight_name": NAME, "use_safetensors": True}  # which it finds by itself if it may ask the Hub
        unet.load_lora_adapter(folder, prefix="unet", adapter_name="default", **where)
    cast_training_params(unet, torch.float32)
    return trained(unet)


class Diffusers(DataParallel):
    """``checkpointed``: the UNet computes its activations again in the backward pass. ``saved``: adapters come from
    a file."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        rank: int,
        alpha: float,
        prediction: str = "epsilon",
        gamma: float = 0.0,
        ema: float = 0.0,
        scale: float = 1.0,
        checkpointed: bool = False,
        saved: bool = False,
    ) -> None:
        without_experts(workload, "a UNet is made here with")
        self.rank = dist.get_rank()
        self.gamma, self.scale, self.dtype = gamma, scale, TORCH_DTYPES[workload.dtype]
        self.unet = unet(sizes(workload.model)).to(device(), self.dtype).requires_grad_(False)
        fill(self.unet, workload)
        settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": list(TARGETS)}
        configuration = f"LoraConfig({settings})"
        self.unet.add_adapter(LoraConfig(**settings))
        cast_training_params(self.unet, torch.float32)
        if checkpointed:
            self.unet.enable_gradient_checkpointing()
            configuration += ", enable_gradient_checkpointing()"
        self.unet.train()
        weights = trained(self.unet)
        give(weights, start(workload, rank))
        base = {canonical(n): p for n, p in self.unet.named_parameters() if not p.requires_grad}
        if saved:
            weights = load(self.unet)
            configuration += ", save_lora_weights(), load_lora_adapter()"
        super().__init__(workload, topology, self.unet, weights, base, configuration)
        self.scheduler = scheduler(prediction)
        self.average = EMAModel(weights.values(), decay=ema) if ema else None

    def loss(self, pictures: Pictures) -> Tensor:
        latents, text, timesteps, eps = pictures
        noisy = self.scheduler.add_noise(latents, eps, timesteps)
        predicts_noise = self.scheduler.config.prediction_type == "epsilon"
        target = eps if predicts_noise else self.scheduler.get_velocity(latents, eps, timesteps)
        more = {} if self.scale == 1.0 else {"cross_attention_kwargs": {"scale": self.scale}}
        found = self.model(noisy.to(self.dtype), timesteps, text.to(self.dtype), return_dict=False, **more)[0]
        if not self.gamma:
            return F.mse_loss(found.float(), target.float(), reduction="mean")
        snr = compute_snr(self.scheduler, timesteps)
        weights = torch.stack([snr, self.gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
        weights = weights / (snr if predicts_noise else snr + 1)
        loss = F.mse_loss(found.float(), target.float(), reduction="none")
        loss = loss.mean(dim=list(range(1, len(loss.shape)))) * weights
        return loss.mean()

    def backward(self, batch: Pictures) -> Tensor:
        k, total = self.workload.micro_batches, torch.zeros((), dtype=torch.float64, device=device())
        for index, pictures in enumerate(share(batch, k, self.rank, self.ranks)):
            with self.around(index == k - 1):
                loss = self.loss(placed(pictures)) / k
                loss.backward()
            total += loss.detach()
        return total

    def update(self) -> None:
        super().update()
        if self.average:
            self.average.step(self.weights.values())

    def parameters(self) -> Mapping[str, Tensor]:
        found = dict(super().parameters())
        if self.average:
            shadows = zip(self.weights, self.average.shadow_params, strict=True)
            found |= {AVERAGED + name: shadow.cpu() for name, shadow in shadows}
        return found

    def merged(self) -> Mapping[str, Tensor]:
        if self.average:
            self.average.store(self.weights.values())
            self.average.copy_to(self.weights.values())
        self.unet.fuse_lora(lora_scale=self.scale)
        return {f"{name}.weight": self.base[f"{name}.weight"] for name, _ in targets(sizes(self.workload.model))}

    def unmerge(self) -> None:
        self.unet.unfuse_lora()
        if self.average:
            self.average.restore(self.weights.values())


def build(workload: Workload, topology: Topology, **variant: Any) -> Diffusers:
    return Diffusers(workload, topology, **variant)


def build_checkpointed(workload: Workload, topology: Topology, **variant: Any) -> Diffusers:
    return Diffusers(workload, topology, checkpointed=True, **variant)


def build_saved(workload: Workload, topology: Topology, **variant: Any) -> Diffusers:
    return Diffusers(workload, topology, saved=True, **variant)
