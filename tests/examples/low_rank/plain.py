"""The oracle: the adapted matrix on one process."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Topology, Workload
from impls.common.optimizer import MasterWeights, square
from impls.common.weights import TORCH_DTYPES
from tests.examples.low_rank.data import SIZE, Pairs, base


def options(workload: Workload, topology: Topology, rank: int) -> dict[str, int]:
    return {"rank": rank}


def initial(workload: Workload, rank: int) -> Iterator[tuple[str, Tensor]]:
    """A is drawn, B is zero (Hu et al. 2021, section 4.1)."""
    generator = torch.Generator().manual_seed(workload.seed)
    yield "A", torch.randn(rank, SIZE, generator=generator).bfloat16().float() / 8
    yield "B", torch.full((SIZE, rank), 2.0**-6)  # not quite zero: a gradient of zero would have no floor


class LowRank:
    """y = (W₀ + B A) x, with the mean squared error."""

    def __init__(self, workload: Workload, rank: int, permute: bool = False, math: bool = False) -> None:
        self.workload, self.permute, self.math = workload, permute, math
        dtype = TORCH_DTYPES[workload.dtype]
        self.base = base(workload).to(dtype)  # W₀, [SIZE, SIZE]
        start = {name: torch.nn.Parameter(tensor.to(dtype)) for name, tensor in initial(workload, rank)}
        self.weights, self.steps, self.norm = start, 0, 0.0
        self.optimizer = MasterWeights(start.values(), workload)

    def backward(self, batch: Pairs) -> Tensor:
        x, y = (part.flip(0) if self.permute else part for part in batch)
        return self.accumulate(Pairs(x, y), 1.0)

    def accumulate(self, batch: Pairs, scale: float) -> Tensor:
        """The mean loss over the batch's micro-batches; the gradients are multiplied by ``scale``."""
        total, k = torch.zeros((), dtype=torch.float64), self.workload.micro_batches
        for x, y in zip(*(part.to(self.base.dtype).chunk(k) for part in batch), strict=True):
            low = x @ self.weights["A"].T  # [rows, rank]
            delta = low @ self.weights["B"].T if not self.math else x @ (self.weights["B"] @ self.weights["A"]).T
            error = (x @ self.base.T + delta - y).to(torch.promote_types(x.dtype, torch.float32))
            loss = error.square().mean()
            (loss * scale / k).backward()
            total += loss.detach().double() / k
        return total

    def update(self) -> None:
        self.norm = float(square([p.grad for p in self.weights.values() if p.grad is not None]).sqrt())
        self.optimizer.step()
        self.steps += 1

    def observe(self) -> Mapping[str, float]:
        return {"steps": self.steps, "norm": self.norm}

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad for name, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: m.detach() for name, m in zip(self.weights, self.optimizer.masters, strict=True)}

    def frozen(self) -> Mapping[str, Tensor]:
        return {"W0": self.base}

    def merged(self) -> Mapping[str, Tensor]:
        with torch.no_grad():
            self.base += self.weights["B"] @ self.weights["A"]
        return self.frozen()

    def unmerge(self) -> None:
        with torch.no_grad():
            self.base -= self.weights["B"] @ self.weights["A"]


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **options: Any) -> LowRank:
    return LowRank(workload, permute=permute, math=math, **options)
