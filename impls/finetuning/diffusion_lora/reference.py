"""Low-rank adapters of a Stable Diffusion UNet (Hu et al. 2021, section 4.1; Rombach et al. 2022, section 3.3).

A frozen matrix W of an attention, of queries, keys, values or results, learns s B A with s = α/r:

    h = W x + s B A x            A [r, i]   B [o, r]   W [o, i]

A step takes latents x₀, their texts, timesteps t and noise ε (noise.py):

    x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε      L = mean over pictures of w_t · the mean square of UNet(x_t, t, text) − (ε or v)

The adapters that are kept for sampling may be averages of all steps' (Ho et al. 2020, appendix B): after step n

    θ' = d_n θ' + (1 − d_n) θ            d_n grows to its limit with n
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Topology, Workload
from impls.common.mesh import device, placed
from impls.common.optimizer import clip, optimizer
from impls.common.sums import sum_flat
from impls.finetuning.diffusion_lora.data import Pictures, share
from impls.finetuning.diffusion_lora.noise import alphas_bar, decay, noised, target, weights
from impls.finetuning.diffusion_lora.shapes import AVERAGED, sizes, targets
from impls.finetuning.diffusion_lora.weights import build_model, start


class LoRA(nn.Module):
    """x [..., i] → h [..., o]."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, s: float) -> None:  # noqa: N803
        super().__init__()
        self.base, self.A, self.B, self.s = base, nn.Parameter(A), nn.Parameter(B), s

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.A.to(x.dtype))  # [..., r]
        return self.base(x) + self.s * F.linear(low, self.B.to(x.dtype))  # [..., o]


class DiffusionLoRA:
    """``rank``: r; ``prediction``: epsilon or v; ``gamma``: of min-SNR, 0 for none; ``ema``: the limit of d_n, 0 for no
    averages; ``scale``: a further factor of s, the adapters' weight."""

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
    ) -> None:
        self.workload, self.rank, self.ranks = workload, dist.get_rank(), topology.dp
        self.prediction, self.gamma, self.ema, self.steps = prediction, gamma, ema, 0
        self.unet = build_model(workload)
        self.dtype = self.unet.conv_in.weight.dtype
        self.base = dict(self.unet.named_parameters())
        # Adapters and noise are float32 whatever the UNet's precision.
        self.alphas_bar = alphas_bar(torch.promote_types(self.dtype, torch.float32)).to(device())  # [T]
        drawn = {name: tensor.to(device()) for name, tensor in start(workload, rank)}
        self.adapted: dict[str, LoRA] = {}
        for name, _ in targets(sizes(workload.model)):
            A, B = drawn[f"{name}.lora_A.weight"], drawn[f"{name}.lora_B.weight"]  # noqa: N806
            self.adapted[name] = LoRA(self.unet.get_submodule(name), A, B, scale * alpha / rank)
            self.unet.set_submodule(name, self.adapted[name])
        parts = {name: {"lora_A.weight": layer.A, "lora_B.weight": layer.B} for name, layer in self.adapted.items()}
        self.weights = {f"{name}.{kind}": p for name, kinds in parts.items() for kind, p in kinds.items()}
        self.averages = {name: p.detach().clone() for name, p in self.weights.items()} if ema else {}
        self.optimizer = optimizer(self.weights.values(), workload)

    def loss(self, pictures: Pictures) -> Tensor:
        x0, text, t, noise = pictures
        # 1. Latents with noise.
        a = self.alphas_bar[t]  # [b]
        xt = noised(x0, noise, a).to(self.dtype)  # [b, 4, H, W]
        # 2. What the UNet sees in them, and what it should have seen.
        found = self.unet(xt, t, text.to(self.dtype))  # [b, 4, H, W]
        off = found.to(a.dtype) - target(x0, noise, a, self.prediction)  # [b, 4, H, W]
        # 3. A picture's weight is that of its timestep.
        return (weights(a, self.prediction, self.gamma) * off.square().mean((1, 2, 3))).mean()

    def backward(self, batch: Pictures) -> Tensor:
        # 1. This rank's pictures. No gradient of a frozen weight is computed.
        k, total = self.workload.micro_batches, torch.zeros((), dtype=torch.float64, device=device())
        for pictures in share(batch, k, self.rank, self.ranks):
            loss = self.loss(placed(pictures)) / k
            (loss / self.ranks).backward()
            total += loss.detach()
        # 2. The mean over ranks, in one message of all adapters.
        sum_flat([p.grad for p in self.weights.values() if p.grad is not None], dist.group.WORLD)
        return total

    def update(self) -> None:
        # 1. The adapters alone take a step.
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # 2. Their averages follow.
        self.steps += 1
        for name, average in self.averages.items():
            average.lerp_(self.weights[name].detach(), 1 - decay(self.steps, self.ema))

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad.cpu() for name, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        averages = {AVERAGED + name: average.cpu() for name, average in self.averages.items()}
        return {name: p.detach().cpu() for name, p in self.weights.items()} | averages

    def frozen(self) -> Mapping[str, Tensor]:
        return self.base

    @torch.no_grad()
    def merged(self) -> Mapping[str, Tensor]:
        """W + s B A, of the averages if there are any."""
        for name, layer in self.adapted.items():
            layer.base.weight += self.update_of(name)
        return {f"{name}.weight": layer.base.weight for name, layer in self.adapted.items()}

    @torch.no_grad()
    def unmerge(self) -> None:
        for name, layer in self.adapted.items():
            layer.base.weight -= self.update_of(name)

    def update_of(self, name: str) -> Tensor:
        """s B A of one matrix, [o, i]."""
        kept = self.averages or self.weights
        return self.adapted[name].s * kept[f"{name}.lora_B.weight"] @ kept[f"{name}.lora_A.weight"]


def build(workload: Workload, topology: Topology, **variant: float) -> DiffusionLoRA:
    return DiffusionLoRA(workload, topology, **variant)
