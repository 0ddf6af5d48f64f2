"""QLoRA (Dettmers et al. 2023, §3): adapters in bfloat16 on a frozen base in four bits.

    Y = X doubleDequant(c₁, c₂, W) + X L₁ L₂                      (equation 5)
    doubleDequant(c₁, c₂, W) = dequant(dequant(c₁, c₂), W)        (equation 6)

    W   codes of the frozen matrix, 4 bits each          c₂  codes of the scales of its blocks of 64
    c₁  scales of c₂'s blocks of 256                     L₁, L₂  the adapters, here A [r, k] and B [d, r] with s = α/r

The storage type is not the computation's: W is dequantised for the product, and dropped. The backward pass needs W too,
    ∂E/∂X = ∂E/∂Y · doubleDequant(c₁, c₂, W) + …

and dequantises it again, so that nothing of its size waits for it. ∂E/∂W does not exist: only the adapters have
gradients and states of the optimizer. What the rounding of W lost they may learn to give back.

    forward    codes ─▶ W ─▶ X Wᵀ, drop W          backward    codes ─▶ W ─▶ ∂E/∂Y W, drop W
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.common.sums import sum_flat
from impls.common.trained import Trained
from impls.common.weights import build_model
from impls.finetuning.lora.base import biased
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.shapes import scale, targets
from impls.finetuning.qlora.sharded import Shard
from impls.finetuning.qlora.storage import Format, Packed


class Base(Protocol):
    """A frozen matrix that is stored in four bits."""

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """W [d, k]."""


class Whole:
    """W, whole on this rank."""

    def __init__(self, packed: Packed, shape: tuple[int, int], format: Format) -> None:
        self.packed, self.shape, self.format = packed, shape, format

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        return self.format.unpack(self.packed, self.shape, dtype)


class FrozenProduct(torch.autograd.Function):
    """x [..., k] → x Wᵀ [..., d]. Neither x nor the dequantised W is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Base) -> Tensor:
        ctx.base = base
        return F.linear(x, base.dequantised(x.dtype))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (slope,) = slopes  # [..., d]
        return slope @ ctx.base.dequantised(slope.dtype), None


class QLoRA(nn.Module):
    """x [..., k] → Y [..., d]. A and B are float32 masters, and bfloat16 in the product where x is."""

    def __init__(self, base: Base, b: Tensor | None, A: Tensor, B: Tensor, s: float) -> None:  # noqa: N803
        super().__init__()
        self.base, self.b, self.A, self.B, self.s = base, b, nn.Parameter(A), nn.Parameter(B), s

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.A.to(x.dtype))  # [..., r]
        y: Tensor = FrozenProduct.apply(x, self.base)  # [..., d]
        return biased(y + self.s * F.linear(low, self.B.to(x.dtype)), self.b)


class QuantisedLowRankAdaptation(Trained):
    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        rank: int,
        alpha: float,
        normal: bool,
        double: bool,
        sharded: bool = False,
    ) -> None:
        without_experts(workload, "adapters are set up here with")
        self.workload, self.ranks = workload, topology.dp
        self.model, self.format = build_model(workload).requires_grad_(False), Format(normal, double, device())
        # 1. The matrices become codes, whole or one part of N.
        self.shard = Shard(self.format, dist.group.WORLD) if sharded else None
        self.packed: dict[str, Packed] = {}
        bases: dict[str, Base] = {}
        for name, shape in targets(workload.model):
            packed = self.format.pack(self.model.get_submodule(name).weight)
            if self.shard:
                bases[name] = self.shard.add(name, packed, shape)
            else:
                self.packed[name], bases[name] = packed, Whole(packed, shape, self.format)
        if self.shard:
            self.shard.divide(self.model)
        # 2. Adapters beside them.
        self.weights: dict[str, nn.Parameter] = {}
        start = {name: tensor.to(device()) for name, tensor in initial(workload, rank)}
        for name, base in bases.items():
            bias = self.model.get_submodule(name).bias
            layer = QLoRA(base, bias, *(start[f"{name}.lora_{side}.weight"] for side in "AB"), scale(rank, alpha))
            self.model.set_submodule(name, layer)
            self.weights |= {f"{name}.lora_A.weight": layer.A, f"{name}.lora_B.weight": layer.B}
        self.optimizer = optimizer(self.weights.values(), workload)

    def backward(self, batch: Batch) -> Tensor:
        rank, mean = dist.get_rank(), 1 / self.ranks
        loss = accumulate(self.model, batch, self.workload, rank, self.ranks, mean, backward=self.differentiate)
        sum_flat([p.grad for p in self.weights.values() if p.grad is not None], dist.group.WORLD)
        return loss

    def differentiate(self, loss: Tensor) -> None:
        loss.backward()
        if self.shard:
            self.shard.drop()

    def frozen(self) -> Mapping[str, Tensor]:
        """Codes and scales, by bits."""
        if self.shard:
            return self.shard.parts()
        return {f"{name}.{kind}": t for name, packed in self.packed.items() for kind, t in packed._asdict().items()}


def build(workload: Workload, topology: Topology, **variant: Any) -> QuantisedLowRankAdaptation:
    return QuantisedLowRankAdaptation(workload, topology, **variant)
