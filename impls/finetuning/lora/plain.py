"""The dense model with adapters on one process. All adapters are drawn, B too: with B = 0 the gradient of A is zero,
and an engine without it would not be noticed."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.spec import Topology, Workload
from impls.common import weights
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.trained import Dense
from impls.common.weights import build_model, weight
from impls.finetuning.lora.base import biased, frozen
from impls.finetuning.lora.shapes import MAGNITUDE, A, B, adapters, scale, targets


def options(workload: Workload, topology: Topology, **variant: Any) -> dict[str, Any]:
    return variant


def replays(ratio: float = 1.0, **options: Any) -> bool:
    """Steps of different sizes are not those of the workload's optimizer."""
    return ratio == 1.0


def initial(workload: Workload, rank: int, dora: bool = False, **options: Any) -> Iterator[tuple[str, Tensor]]:
    """The adapters, float32. DoRA's m is the norm of each row of W (section 4.1), with a gain that is not quite 1."""
    base = dict(weights.initial(workload)) if dora else {}
    for name, shape in adapters(workload.model, rank, dora):
        drawn = weight(workload, name, shape)
        if name.endswith(MAGNITUDE):
            drawn = (drawn * base[name.removesuffix(MAGNITUDE) + "weight"].norm(dim=1)).bfloat16().float()
        yield name, drawn / 4 if name.endswith(B) else drawn


class Adapted(nn.Module):
    """x [..., in] → [..., out]. ``math``: by the product B A."""

    def __init__(self, base: nn.Linear, scale: float, dora: bool, math: bool) -> None:
        super().__init__()
        self.base, self.scale, self.dora, self.math = base, scale, dora, math
        self.trained: dict[str, nn.Parameter] = {}
        self.folded = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.trained[name].to(x.dtype) for name in (A, B))
        update = x @ (b @ a).T if self.math else x @ a.T @ b.T
        y = F.linear(x, self.base.weight) + self.scale * update
        y = y * self.gain().to(x.dtype) if self.dora else y
        return biased(y, self.base.bias)

    def gain(self) -> Tensor:
        """m / ‖W + s B A‖ of each row, [out]; the norm is a constant to the gradient (equation 11)."""
        return self.trained[MAGNITUDE] / self.whole().norm(dim=1)

    def update(self) -> Tensor:
        """s B A, [out, in]."""
        return (self.scale * self.trained[B] @ self.trained[A]).detach()

    def whole(self) -> Tensor:
        """W + s B A, at least float32, [out, in]."""
        return self.base.weight + self.update()

    def merge(self) -> None:
        self.folded = self.gain().detach()[:, None] if self.dora else torch.ones(())
        self.base.weight.copy_(self.whole() * self.folded)

    def unmerge(self) -> None:
        self.base.weight.copy_(self.base.weight / self.folded - self.update())


class Plain(Dense):
    def __init__(
        self,
        workload: Workload,
        permute: bool,
        math: bool,
        rank: int,
        alpha: float,
        rslora: bool = False,
        ratio: float = 1.0,
        dora: bool = False,
    ) -> None:
        without_experts(workload, "adapters are set up here with")
        self.workload, self.permute = workload, permute
        self.attention = partial(sdpa_kernel, SDPBackend.MATH) if math else contextlib.nullcontext
        self.model = build_model(workload).requires_grad_(False)
        self.adapted = {}
        for name, _ in targets(workload.model):
            made = Adapted(self.model.get_submodule(name), scale(rank, alpha, rslora), dora, math)
            self.model.set_submodule(name, made)
            self.adapted[name] = made
        self.weights: dict[str, nn.Parameter] = {}
        wide = torch.promote_types(self.model.lm_head.weight.dtype, torch.float32)
        for name, tensor in initial(workload, rank, dora):
            self.weights[name] = nn.Parameter(tensor.to(device(), wide))
            module, kind = name.rsplit(".lora", 1)
            self.adapted[module].trained["lora" + kind] = self.weights[name]
        faster = [p for n, p in self.weights.items() if n.endswith(B)]
        others = [p for n, p in self.weights.items() if not n.endswith(B)]
        groups = [{"params": others}, {"params": faster, "lr": workload.lr * ratio}]
        self.optimizer = optimizer(groups, workload, fused=not math)

    def frozen(self) -> Mapping[str, Tensor]:
        return frozen({name: (adapted.base.weight, adapted.base.bias) for name, adapted in self.adapted.items()})

    @torch.no_grad()
    def merged(self) -> Mapping[str, Tensor]:
        for adapted in self.adapted.values():
            adapted.merge()
        return self.frozen()

    @torch.no_grad()
    def unmerge(self) -> None:
        for adapted in self.adapted.values():
            adapted.unmerge()


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **options: Any) -> Plain:
    return Plain(workload, permute, math, **options)
