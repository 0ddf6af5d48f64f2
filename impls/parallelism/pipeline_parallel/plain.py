"""The dense model with the delays of asynchronous pipelines: each stage's weights as old as that schedule has them.

Mini-batch t of a step, computed on stage s with the weights that have seen max(0, t − delay(s)) of its updates:

    PipeDream    delay p − 1 − s    a mini-batch is a micro-batch              Narayanan et al. 2019, §3.3
    2BW          delay 1            a mini-batch is p micro-batches            Narayanan et al. 2021, §3.1

It is written from these delays and knows no schedule; one mini-batch is done before the next begins.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.models.mesh import token_share
from impls.models.plain import Plain
from impls.parallelism.pipeline_parallel.places import split


def options(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> dict[str, Any] | None:
    p, m = topology.pp, workload.micro_batches
    if schedule == "pipedream":
        return {"ranks": topology.dp, "delays": tuple(range(p - 1, -1, -1)), "mini_batches": m, "pieces": m}
    if schedule == "pipedream_2bw":
        return {"ranks": topology.dp, "delays": (1,) * p, "mini_batches": max(1, m // p), "pieces": m}
    return None


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
        self.delay = {name: delays[_stage(name, layers)] for name in self.names}
        self.summed: dict[str, Tensor] = {}

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        weights = dict(self.model.named_parameters())
        # The newest is the last; as far back as the delay reaches.
        seen = {n: deque([w.detach().clone()], maxlen=self.delay[n] + 1) for n, w in weights.items()}
        self.summed = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        # Of every rank's share the t-th part
        shares = [t.unflatten(0, (self.ranks, self.mini_batches, -1)) for t in batch]
        for t in range(self.mini_batches):
            mini_batch = Batch(*(share[:, t].flatten(0, 1) for share in shares))
            self._load({name: versions[0] for name, versions in seen.items()})
            total += super().backward(mini_batch) * token_share(mini_batch, batch)
            self._load({name: versions[-1] for name, versions in seen.items()})
            for name, weight in weights.items():
                self.summed[name] += weight.grad
            self.optimizer.step()
            for name, weight in weights.items():
                seen[name].append(weight.detach().clone())
        return total

    @torch.no_grad()
    def _load(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.model.named_parameters():
            weight.copy_(values[name])

    def update(self) -> None:
        pass

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: gradient.cpu() for name, gradient in self.summed.items()}


def _stage(name: str, layers: list[range]) -> int:
    if name.startswith("model.embed_tokens"):
        return 0
    if name.startswith("model.layers."):
        return next(stage for stage, held in enumerate(layers) if int(name.split(".")[2]) in held)
    return len(layers) - 1


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **case: Any) -> Delayed:
    return Delayed(workload, permute, math, **case)
