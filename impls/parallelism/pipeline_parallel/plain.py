"""The dense model with the delays of asynchronous pipelines: each stage's weights as old as that schedule has them.

Mini-batch t of a step, computed on stage s with the weights that have seen max(0, t − delay(s)) of its updates:

    PipeDream    delay p − 1 − s    a mini-batch is a micro-batch              Narayanan et al. 2019, §3.3
    2BW          delay 1            a mini-batch is p micro-batches            Narayanan et al. 2021, §3.1

It is written from these delays and knows no schedule; one mini-batch is done before the next begins.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.common import weights
from impls.common.cuts import split
from impls.common.mesh import token_share
from impls.common.plain import Plain


def options(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> dict[str, Any] | None:
    p, m = topology.pp, workload.micro_batches
    if schedule == "pipedream":
        return {"ranks": topology.dp, "delays": tuple(range(p - 1, -1, -1)), "mini_batches": m, "pieces": m}
    if schedule == "pipedream_2bw":
        return {"ranks": topology.dp, "delays": (1,) * p, "mini_batches": max(1, m // p), "pieces": m}
    return None


def initial(workload: Workload, **options: Any) -> Iterator[tuple[str, Tensor]]:
    """Everybody's weights."""
    return weights.initial(workload)


class Delayed(Plain):
    """``delays`` of the stages, in updates. ``pieces``: the case's micro-batches, by which a mini-batch is split;
    members of the ensemble split theirs otherwise."""

    def __init__(
        self,
        workload: Workload,
        permute: bool,
        math: bool,
        ranks: int,
        delays: tuple[int, ...],
        mini_batches: int,
        pieces: int,
    ) -> None:
        mine = workload.micro_batches == pieces
        super().__init__(
            workload.with_(micro_batches=pieces // mini_batches if mine else workload.micro_batches), permute, math
        )
        self.ranks, self.mini_batches = ranks, mini_batches
        layers = split(workload.model.num_hidden_layers, len(delays))
        self.delays = [delays[_stage(name, layers)] for name in self.names]
        self.weights = list(self.model.parameters())
        self.summed: list[Tensor] = []

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        # The last is the newest; as many as the longest delay reaches back.
        versions = deque([self._copies()], maxlen=max(self.delays) + 1)
        self.summed = [torch.zeros_like(weight) for weight in self.weights]
        shares = [tensor.unflatten(0, (self.ranks, self.mini_batches, -1)) for tensor in batch]
        for t in range(self.mini_batches):
            mini_batch = Batch(*(share[:, t].flatten(0, 1) for share in shares))  # the t-th part of every rank's share
            used = [versions[max(-1 - delay, -len(versions))][i] for i, delay in enumerate(self.delays)]
            self._load(used)
            total += super().backward(mini_batch) * token_share(mini_batch, batch)
            self._load(versions[-1])
            torch._foreach_add_(self.summed, [weight.grad for weight in self.weights])
            self.optimizer.step()
            versions.append(self._copies())
        return total

    def _copies(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self.weights, values)

    def update(self) -> None:
        pass

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: gradient.cpu() for name, gradient in zip(self.names, self.summed, strict=True)}


def _stage(name: str, layers: list[range]) -> int:
    if name.startswith("model.embed_tokens"):
        return 0
    if name.startswith("model.layers."):
        return next(stage for stage, held in enumerate(layers) if int(name.split(".")[2]) in held)
    return len(layers) - 1


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **case: Any) -> Delayed:
    return Delayed(workload, permute, math, **case)
