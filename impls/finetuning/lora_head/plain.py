"""The dense model on one process: what an adapter adds is a whole matrix [V, h], looked up or multiplied."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.spec import Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.trained import Dense
from impls.common.weights import build_model
from impls.finetuning.lora_head import shapes
from impls.finetuning.lora_head.shapes import EMBEDDING, EMBEDDING_A, EMBEDDING_B, HEAD, HEAD_A, HEAD_B


def options(workload: Workload, topology: Topology, **variant: Any) -> dict[str, Any]:
    return variant


def initial(workload: Workload, **options: Any) -> Iterator[tuple[str, Tensor]]:
    return shapes.initial(workload, **options)


class End(nn.Module):
    """The embedding or the head, with the matrix that its adapter adds."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], base: Tensor, update: Callable[[], Tensor]) -> None:
        super().__init__()
        self.product, self.base, self.update = product, base, update

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.base) + self.product(x, self.update().to(self.base.dtype))


class Plain(Dense):
    def __init__(
        self, workload: Workload, permute: bool, math: bool, rank: int, alpha: float, ends: Sequence[str]
    ) -> None:
        without_experts(workload, "adapters are set up here with")
        shapes.check(workload.model, ends)
        self.workload, self.permute, self.scale = workload, permute, alpha / rank
        self.attention = partial(sdpa_kernel, SDPBackend.MATH) if math else contextlib.nullcontext
        self.model = build_model(workload).requires_grad_(False)
        below, above = self.model.model.embed_tokens.weight, self.model.lm_head.weight
        wide = torch.promote_types(above.dtype, torch.float32)
        start = shapes.initial(workload, rank, ends)
        self.weights = {name: nn.Parameter(tensor.to(device(), wide)) for name, tensor in start}
        self.base: dict[str, Tensor] = {}
        if EMBEDDING_A in self.weights:
            self.base[f"{EMBEDDING}.weight"] = below
            self.model.set_submodule(EMBEDDING, End(F.embedding, below, self.embedding))
        if HEAD_A in self.weights:
            self.base[f"{HEAD}.weight"] = above
        if HEAD_A in self.weights or "tied" in ends:
            self.model.set_submodule(HEAD, End(F.linear, above, self.embedding if "tied" in ends else self.head))
        self.optimizer = optimizer(self.weights.values(), workload, fused=not math)

    def embedding(self) -> Tensor:
        """s (B A)ᵀ, [V, h]."""
        return (self.scale * self.weights[EMBEDDING_B] @ self.weights[EMBEDDING_A]).T

    def head(self) -> Tensor:
        """s B A, [V, h]."""
        return self.scale * self.weights[HEAD_B] @ self.weights[HEAD_A]

    def updates(self) -> dict[str, Tensor]:
        made = {f"{EMBEDDING}.weight": self.embedding, f"{HEAD}.weight": self.head}
        return {name: made[name]() for name in self.base}

    def frozen(self) -> Mapping[str, Tensor]:
        return self.base

    @torch.no_grad()
    def merged(self) -> Mapping[str, Tensor]:
        for name, update in self.updates().items():
            self.base[name] += update
        return self.frozen()

    @torch.no_grad()
    def unmerge(self) -> None:
        for name, update in self.updates().items():
            self.base[name] -= update


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **options: Any) -> Plain:
    return Plain(workload, permute, math, **options)
