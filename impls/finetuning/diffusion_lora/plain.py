"""The dense model on one process: the UNet with W + s B A in place of W, and the loss by its definition."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Topology, Workload
from impls.common.mesh import device, placed
from impls.common.optimizer import clip, optimizer
from impls.finetuning.diffusion_lora import noise, weights
from impls.finetuning.diffusion_lora.blocks import Attention
from impls.finetuning.diffusion_lora.data import Pictures, share
from impls.finetuning.diffusion_lora.shapes import AVERAGED, sizes, targets
from impls.finetuning.lora.shapes import A, B


def options(workload: Workload, topology: Topology, **variant: Any) -> dict[str, Any]:
    return variant


def replays(ema: float = 0.0, **options: Any) -> bool:
    """An average of weights is no step of an optimizer."""
    return not ema


def initial(workload: Workload, rank: int, ema: float = 0.0, **options: Any) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.start(workload, rank):
        yield name, tensor
        if ema:
            yield AVERAGED + name, tensor


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


class Adapted(nn.Module):
    """``math``: by the product B A."""

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor, scale: float, math: bool) -> None:
        super().__init__()
        self.base, self.a, self.b, self.scale, self.math = base, nn.Parameter(a), nn.Parameter(b), scale, math

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        return F.linear(x, self.base.weight, self.base.bias) + self.scale * (
            x @ (b @ a).T if self.math else x @ a.T @ b.T
        )


class Plain:
    """``permute`` reverses the order of pictures; ``math``: unfused kernels."""

    def __init__(
        self,
        workload: Workload,
        permute: bool,
        math: bool,
        rank: int,
        alpha: float,
        prediction: str = "epsilon",
        gamma: float = 0.0,
        ema: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        self.workload, self.permute = workload, permute
        self.prediction, self.gamma, self.ema = prediction, gamma, ema
        self.model = weights.build_model(workload)
        for module in self.model.modules():
            if isinstance(module, Attention) and math:
                module.attend = formula
        self.base = dict(self.model.named_parameters())
        self.wide = torch.promote_types(self.model.conv_in.weight.dtype, torch.float32)
        drawn = {name: tensor.to(device(), self.wide) for name, tensor in weights.start(workload, rank)}
        self.adapted, self.weights = {}, {}
        for name, _ in targets(sizes(workload.model)):
            parts = drawn[f"{name}.{A}"], drawn[f"{name}.{B}"]
            made = Adapted(self.model.get_submodule(name), *parts, scale * alpha / rank, math)
            self.model.set_submodule(name, made)
            self.adapted[name] = made
            self.weights |= {f"{name}.{A}": made.a, f"{name}.{B}": made.b}
        self.averages = {name: p.detach().clone() for name, p in self.weights.items()} if ema else {}
        self.steps = 0
        self.optimizer = optimizer(self.weights.values(), workload, fused=not math)

    def backward(self, batch: Pictures) -> Tensor:
        batch = Pictures(*(tensor.flip(0) for tensor in batch)) if self.permute else batch
        total, k = torch.zeros((), dtype=torch.float64), self.workload.micro_batches
        for part in share(batch, k, 0, 1):
            loss = self.loss(placed(part)) / k
            loss.backward()
            total += loss.detach().cpu()
        return total

    def loss(self, part: Pictures) -> Tensor:
        """The mean over pictures of w_t times the mean square of what is off."""
        abar = noise.alphas_bar(self.wide).to(part.latents.device)[part.timesteps]
        signal, rest = (x.sqrt().view(-1, 1, 1, 1) for x in (abar, 1 - abar))
        x0, eps = part.latents.to(self.wide), part.noise.to(self.wide)
        dtype = self.model.conv_in.weight.dtype
        found = self.model((signal * x0 + rest * eps).to(dtype), part.timesteps, part.text.to(dtype)).to(self.wide)
        off = (found - (eps if self.prediction == "epsilon" else signal * eps - rest * x0)).square().mean((1, 2, 3))
        if self.gamma:
            snr = abar / (1 - abar)
            # min(SNR, γ) weighs errors of x₀, which are those of ε by √SNR smaller, and those of v by √(SNR + 1).
            off = off * torch.minimum(snr, torch.full_like(snr, self.gamma))
            off = off / (snr if self.prediction == "epsilon" else snr + 1)
        return off.mean()

    @torch.no_grad()
    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        d = min(self.ema, self.steps / (9 + self.steps)) if self.steps > 1 else 0.0
        for name, average in self.averages.items():
            average.copy_(d * average + (1 - d) * self.weights[name])

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        averages = {AVERAGED + n: p.cpu() for n, p in self.averages.items()}
        return {n: p.detach().cpu() for n, p in self.weights.items()} | averages

    def frozen(self) -> Mapping[str, Tensor]:
        return self.base

    def merged(self) -> Mapping[str, Tensor]:
        """With the averages, if there are any."""
        return self.fold(1.0)

    def unmerge(self) -> None:
        self.fold(-1.0)

    @torch.no_grad()
    def fold(self, sign: float) -> Mapping[str, Tensor]:
        parts = self.averages or self.weights
        for name, made in self.adapted.items():
            made.base.weight += sign * made.scale * parts[f"{name}.{B}"] @ parts[f"{name}.{A}"]
        return {f"{name}.weight": made.base.weight for name, made in self.adapted.items()}


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **options: Any) -> Plain:
    return Plain(workload, permute, math, **options)
