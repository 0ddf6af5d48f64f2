"""The dense model with AdaLoRA's adapters on one process."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import clip, optimizer
from impls.common.trained import Dense
from impls.common.weights import build_model
from impls.finetuning.adalora import shapes
from impls.finetuning.adalora.budget import Allotted, Importance, kept
from impls.finetuning.adalora.shapes import VALUES, P, Q
from impls.finetuning.lora.base import biased
from impls.finetuning.lora.shapes import targets


def options(workload: Workload, topology: Topology, **variant: Any) -> dict[str, Any]:
    return variant


def initial(workload: Workload, **options: Any) -> Iterator[tuple[str, Tensor]]:
    return shapes.initial(workload, **options)


class Adapted(nn.Module):
    """x [..., in] → [..., out]. ``math``: by the product P Λ Q."""

    def __init__(self, base: nn.Linear, trained: dict[str, nn.Parameter], scale: float, math: bool) -> None:
        super().__init__()
        self.base, self.trained, self.scale, self.math = base, trained, scale, math

    def forward(self, x: Tensor) -> Tensor:
        left, values, right = (self.trained[name].to(x.dtype) for name in (P, VALUES, Q))
        update = x @ (left * values.T @ right).T if self.math else (x @ right.T * values.T) @ left.T
        return biased(F.linear(x, self.base.weight) + self.scale * update, self.base.bias)


class Plain(Dense):
    def __init__(self, workload: Workload, permute: bool, math: bool, allotted: Allotted) -> None:
        without_experts(workload, "adapters are set up here with")
        self.workload, self.permute = workload, permute
        self.gamma, self.squared, rank = allotted.gamma, allotted.squared, allotted.rank
        self.attention = partial(sdpa_kernel, SDPBackend.MATH) if math else contextlib.nullcontext
        self.model = build_model(workload).requires_grad_(False)
        wide = torch.promote_types(self.model.lm_head.weight.dtype, torch.float32)
        self.weights = {name: nn.Parameter(tensor.to(device(), wide)) for name, tensor in initial(workload, rank=rank)}
        self.modules = [name for name, _ in targets(workload.model)]
        for name in self.modules:
            trained = {part: self.weights[f"{name}.{part}"] for part in (P, VALUES, Q)}
            self.model.set_submodule(
                name, Adapted(self.model.get_submodule(name), trained, allotted.alpha / rank, math)
            )
        n = len(self.modules)
        self.schedule = allotted.schedule(n, workload.steps)
        self.importance, self.t, self.masks = Importance(), 0, [torch.ones(rank, dtype=torch.bool)] * n
        self.optimizer = optimizer(self.weights.values(), workload, fused=not math)

    def backward(self, batch: Batch) -> Tensor:
        total = super().backward(batch)
        (self.gamma * self.tilt()).backward()
        return total

    def tilt(self) -> Tensor:
        """R, a scalar."""
        found = []
        for name in self.modules:
            left, right = self.weights[f"{name}.{P}"], self.weights[f"{name}.{Q}"]
            for gram in (left.T @ left, right @ right.T):
                found.append(
                    torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
                )
        lengths = torch.stack(found)
        return lengths.square().sum() if self.squared else lengths.mean()

    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.t += 1
        last = self.schedule.total - self.schedule.final
        if self.t < last:
            self.importance.update(self.parameters(), self.gradients())
        self.optimizer.step()
        self.optimizer.zero_grad()
        budget = self.schedule.at(self.t)
        if budget is None:
            return
        if self.t <= last:
            names = [[f"{name}.{part}" for part in (P, VALUES, Q)] for name in self.modules]
            self.masks = kept([self.importance.triplet(*each) for each in names], budget)
        for name, mask in zip(self.modules, self.masks, strict=True):
            self.weights[f"{name}.{VALUES}"].data[~mask] = 0.0

    def observe(self) -> Mapping[str, float]:
        values = (self.weights[f"{name}.{VALUES}"] for name in self.modules)
        return {"rank": float(sum(int(each.count_nonzero()) for each in values))}


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **options: Any) -> Plain:
    return Plain(workload, permute, math, Allotted(**options))
