"""The UNet of Stable Diffusion (Rombach et al. 2022, section 3.3), at any size: what noise is in these latents?

    z [b, 4, H, W]  noisy latents      t [b]  timesteps      text [b, w, d]  states of a text encoder

    conv_in ─ level 0 ↓ level 1 ↓ … ─ middle ─ … level 1 ↑ level 0 ─ conv_out        c channels, of each level its own
                 └─────────┴───── skips ──────────┴────────┘

A level has residual blocks, which add the timestep's embedding, and behind each but in the last level a transformer
block: positions attend to each other, then to the text. Parameters have the names of Diffusers' UNet2DConditionModel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impls.finetuning.diffusion_lora.blocks import (
    LATENT,
    Resample,
    ResidualBlock,
    Sizes,
    SpatialTransformer,
    TimeEmbedding,
    embedding,
)


class Level(nn.Module):
    """``inputs``: the channels that come into each residual block."""

    def __init__(self, inputs: list[int], c: int, sizes: Sizes, attends: bool) -> None:
        super().__init__()
        time = 4 * sizes.channels[0]
        self.resnets = nn.ModuleList(ResidualBlock(i, c, time, sizes.groups) for i in inputs)
        self.attentions = nn.ModuleList(SpatialTransformer(c, sizes) for _ in inputs if attends)

    def step(self, n: int, x: Tensor, e: Tensor, text: Tensor) -> Tensor:
        x = self.resnets[n](x, e)
        return self.attentions[n](x, text) if n < len(self.attentions) else x


class UNet(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        c, last = sizes.channels, len(sizes.channels) - 1
        self.conv_in, self.time_embedding = nn.Conv2d(LATENT, c[0], 3, padding=1), TimeEmbedding(c[0])
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [c[0]]
        for level in range(last + 1):
            inputs = [c[max(level - 1, 0)]] + [c[level]] * (sizes.layers - 1)
            self.down_blocks.append(Level(inputs, c[level], sizes, attends=level < last))
            skips += [c[level]] * sizes.layers
            if level < last:
                self.down_blocks[-1].downsamplers = nn.ModuleList([Resample(c[level], 2)])
                skips.append(c[level])
        self.mid_block = Level([c[last]] * 2, c[last], sizes, attends=False)
        self.mid_block.attentions.append(SpatialTransformer(c[last], sizes))  # between the two
        for level in range(last, -1, -1):
            inputs = [c[min(level + 1, last)]] + [c[level]] * sizes.layers
            inputs = [i + skips.pop() for i in inputs]
            self.up_blocks.append(Level(inputs, c[level], sizes, attends=level < last))
            if level > 0:
                self.up_blocks[-1].upsamplers = nn.ModuleList([Resample(c[level], 1)])
        self.conv_norm_out, self.conv_out = nn.GroupNorm(sizes.groups, c[0]), nn.Conv2d(c[0], LATENT, 3, padding=1)

    def forward(self, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        # 1. The timestep; its angles need float32.
        wide = torch.promote_types(z.dtype, torch.float32)
        e = self.time_embedding(embedding(t, self.conv_in.out_channels, wide).to(z.dtype))  # [b, 4c]
        # 2. Downwards; each result is kept.
        x = self.conv_in(z)
        skips = [x]
        for block in self.down_blocks:
            for n in range(len(block.resnets)):
                x = block.step(n, x, e, text)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0].conv(x)
                skips.append(x)
        # 3. The middle, and upwards with what was kept.
        x = self.mid_block.resnets[1](self.mid_block.step(0, x, e, text), e)
        for block in self.up_blocks:
            for n in range(len(block.resnets)):
                x = block.step(n, torch.cat((x, skips.pop()), 1), e, text)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0].conv(F.interpolate(x, skips[-1].shape[2:], mode="nearest"))
        return self.conv_out(F.silu(self.conv_norm_out(x)))  # [b, 4, H, W]
