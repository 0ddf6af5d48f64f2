"""The dense model with the quantisation of ZeRO++: of weights before they are used, and of each rank's share of a
gradient.

It knows the owner of each element (blocks are divided by shards) and the sequences of each rank, but communicates
nothing. Its codes are those of quantisation.py, whose error has its own tests.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.common import weights
from impls.common.flat import views
from impls.common.mesh import token_share
from impls.common.optimizer import clip, optimizer
from impls.common.plain import Plain
from impls.parallelism.zero.hooks import modules
from impls.parallelism.zero_plus_plus.quantisation import decode, encode


def options(
    workload: Workload, topology: Topology, group: int, weight_bits: int, gradient_bits: int, hierarchical: bool
) -> dict[str, int] | None:
    if not (weight_bits or gradient_bits):
        return None
    grouped = {"group": group, "micro_batches": workload.micro_batches} if gradient_bits else {}
    return {"ranks": topology.dp, "weight_bits": weight_bits, "gradient_bits": gradient_bits, **grouped}


def rounded(x: Tensor, bits: int) -> Tensor:
    """x [..., size] after a quantised message."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return decode(encode(x, bits), torch.empty(x.shape, dtype=wide, device=x.device), bits)


def reduced(gradients: Tensor, group: int, bits: int) -> Tensor:
    """Σ over ranks of [N, N, size] (by sender, by owner), quantised before each of the two hops → [N · size]."""
    ranks, _, size = gradients.shape
    hops = gradients.view(ranks // group, group, ranks // group, group, size)  # from (j, l) to (j, l)
    inside = (rounded(hops, bits) if group > 1 else hops.to(torch.promote_types(hops.dtype, torch.float32))).sum(1)
    return (rounded(inside, bits) if group < ranks else inside).sum(0).flatten()


def initial(workload: Workload, **options: Any) -> Iterator[tuple[str, Tensor]]:
    """All ranks' weights."""
    return weights.initial(workload)


class Quantised(Plain):
    """``micro_batches`` and ``group`` are the case's: the gradient of every micro-batch on each rank is quantised."""

    def __init__(
        self,
        workload: Workload,
        permute: bool,
        math: bool,
        ranks: int,
        weight_bits: int,
        gradient_bits: int,
        group: int = 1,
        micro_batches: int = 1,
    ) -> None:
        # micro-batches that a member of the ensemble splits more finely than the case
        finer = workload.with_(micro_batches=max(1, workload.micro_batches // micro_batches))
        super().__init__(finer, permute, math)
        self.ranks, self.group, self.pieces = ranks, group, micro_batches
        self.weight_bits, self.gradient_bits = weight_bits, gradient_bits
        self.units = [parameters for _, parameters in modules(self.model)]
        self.wide = torch.promote_types(self.model.lm_head.weight.dtype, torch.float32)
        self.masters = {p: p.detach().to(self.wide, copy=True).requires_grad_() for p in self.model.parameters()}
        self.steps = optimizer(self.masters.values(), workload)
        self._use()

    def _shards(self, unit: list[Tensor], tensors: Mapping[Tensor, Tensor]) -> Tensor:
        """These tensors of a unit as [N, size], padded."""
        flat = torch.cat([tensors[p].flatten() for p in unit])
        return torch.nn.functional.pad(flat, (0, -flat.numel() % self.ranks)).view(self.ranks, -1)

    @torch.no_grad()
    def _use(self) -> None:
        """The weights that the next step computes with."""
        for unit in self.units:
            shards = self._shards(unit, self.masters)
            used = rounded(shards, self.weight_bits) if self.weight_bits else shards
            for parameter, view in zip(unit, views(used.flatten(), unit), strict=True):
                parameter.copy_(view)

    def backward(self, batch: Batch) -> Tensor:
        if not self.gradient_bits:
            loss = super().backward(batch)
            for p, master in self.masters.items():
                master.grad, p.grad = p.grad.to(self.wide), None
            return loss
        total = torch.zeros((), dtype=torch.float64)
        by_rank = [
            [t.chunk(self.pieces) for t in rows] for rows in zip(*(t.chunk(self.ranks) for t in batch), strict=True)
        ]
        for index in range(self.pieces):
            found: list[Mapping[Tensor, Tensor]] = []
            for inputs, labels in by_rank:
                piece = Batch(inputs[index], labels[index])
                share = token_share(piece, batch)
                total += super().backward(piece) * share
                found.append({p: p.grad * share for p in self.masters})
                self.model.zero_grad()
            self._reduce(found)
        return total

    @torch.no_grad()
    def _reduce(self, found: list[Mapping[Tensor, Tensor]]) -> None:
        """Adds the ranks' gradients of one micro-batch to the masters' gradients."""
        for unit in self.units:
            sent = torch.stack([self._shards(unit, gradients) for gradients in found])
            whole = reduced(sent, self.group, self.gradient_bits)
            for parameter, view in zip(unit, views(whole, unit), strict=True):
                master = self.masters[parameter]
                master.grad = view if master.grad is None else master.grad + view

    def update(self) -> None:
        clip([master.grad for master in self.masters.values()], self.workload.max_grad_norm)
        self.steps.step()
        self.steps.zero_grad()
        self._use()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: self.masters[p].grad.cpu() for n, p in self.model.named_parameters()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: self.masters[p].detach().cpu() for n, p in self.model.named_parameters()}


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **case: Any) -> Quantised:
    return Quantised(workload, permute, math, **case)
