"""LoRA (Hu et al. 2021, §4.1) of the two ends: the embedding looks rows up, and the head multiplies.

    embedding    x = E[t] + s Aᵀ[t] Bᵀ          E  [V, h]      A  [r, V]      B  [h, r]
    head         z = W y + s B A y              W  [V, h]      A  [r, h]      B  [V, r]
    tied         E = W: one adapter, E + s (B A)ᵀ, which the head applies as z = E y + s Aᵀ Bᵀ y

    t token ids    y [..., h] the last hidden state    z [..., V] logits    s = α/r

A lookup of a token's row in Aᵀ costs nothing, so the embedding's adapter is one small product. The gradient of A is
dense although a batch has few tokens: rows of tokens that did not occur are 0, and AdamW moves those, too, by its
moments and its decay.

Tied weights are merged once: one matrix serves both ends, and adding s (B A)ᵀ for each of them gives E + 2 s (B A)ᵀ.
An adapter of one end of them cannot be merged: it would be in the other end as well.

With the head's adapter alone nothing below it has a gradient, and the backward pass ends at y.
"""

from collections.abc import Mapping

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
from impls.finetuning.lora.reference import LoRA
from impls.finetuning.lora.shapes import scale
from impls.finetuning.lora_head import shapes
from impls.finetuning.lora_head.shapes import EMBEDDING, EMBEDDING_A, EMBEDDING_B, HEAD, HEAD_A, HEAD_B


class EmbeddingLoRA(nn.Module):
    """t [...] → x [..., h]."""

    def __init__(self, E: Tensor, A: Tensor, B: Tensor, s: float) -> None:  # noqa: N803
        super().__init__()
        self.E, self.A, self.B, self.s = E, nn.Parameter(A), nn.Parameter(B), s

    def forward(self, t: Tensor) -> Tensor:
        x = F.embedding(t, self.E)
        low = F.embedding(t, self.A.T).to(x.dtype)  # [..., r]
        return x + self.s * F.linear(low, self.B.to(x.dtype))

    def trained(self) -> dict[str, nn.Parameter]:
        return {EMBEDDING_A: self.A, EMBEDDING_B: self.B}

    @torch.no_grad()
    def merge(self) -> None:
        self.E += self.s * (self.B @ self.A).T

    @torch.no_grad()
    def unmerge(self) -> None:
        self.E -= self.s * (self.B @ self.A).T


class TiedHead(nn.Module):
    """y [..., h] → z [..., V], with the embedding's matrix and its adapter."""

    def __init__(self, embedding: EmbeddingLoRA) -> None:
        super().__init__()
        self.ends = [embedding]  # in a list: its parameters are the embedding's

    def forward(self, y: Tensor) -> Tensor:
        (end,) = self.ends
        low = F.linear(y, end.B.T.to(y.dtype))  # [..., r]
        return F.linear(y, end.E) + end.s * F.linear(low, end.A.T.to(y.dtype))


class AdaptedEnds(Trained):
    def __init__(self, workload: Workload, topology: Topology, rank: int, alpha: float, ends: tuple[str, ...]) -> None:
        without_experts(workload, "adapters are set up here with")
        shapes.check(workload.model, ends)
        self.workload, self.ranks = workload, topology.dp
        self.model = build_model(workload).requires_grad_(False)
        start = {name: tensor.to(device()) for name, tensor in shapes.initial(workload, rank, ends)}
        s, self.weights, self.matrices = scale(rank, alpha), dict[str, nn.Parameter](), dict[str, Tensor]()
        self.adapted: list[EmbeddingLoRA | LoRA] = []
        if EMBEDDING_A in start:
            below = EmbeddingLoRA(self.model.model.embed_tokens.weight, start[EMBEDDING_A], start[EMBEDDING_B], s)
            self.model.set_submodule(EMBEDDING, below)
            self.adapted, self.weights = [below], below.trained()
            self.matrices[f"{EMBEDDING}.weight"] = below.E
            if "tied" in ends:
                self.model.set_submodule(HEAD, TiedHead(below))
        if HEAD_A in start:
            above = LoRA(self.model.lm_head, start[HEAD_A], start[HEAD_B], s)
            self.model.set_submodule(HEAD, above)
            self.adapted.append(above)
            self.weights |= {HEAD_A: above.A, HEAD_B: above.B}
            self.matrices[f"{HEAD}.weight"] = above.W
        self.optimizer = optimizer(self.weights.values(), workload)

    def backward(self, batch: Batch) -> Tensor:
        # 1. This rank's share of the batch.
        loss = accumulate(self.model, batch, self.workload, dist.get_rank(), self.ranks, scale=1 / self.ranks)
        # 2. One message of all adapters.
        sum_flat([p.grad for p in self.weights.values() if p.grad is not None], dist.group.WORLD)
        return loss

    def frozen(self) -> Mapping[str, Tensor]:
        return self.matrices

    def merged(self) -> Mapping[str, Tensor]:
        for layer in self.adapted:
            layer.merge()
        return self.frozen()

    def unmerge(self) -> None:
        for layer in self.adapted:
            layer.unmerge()


def build(workload: Workload, topology: Topology, rank: int, alpha: float, ends: tuple[str, ...]) -> AdaptedEnds:
    return AdaptedEnds(workload, topology, rank, alpha, ends)
