"""Data parallelism by all-reduce (Li et al. 2020, "PyTorch Distributed", §3.2).

Every rank holds the whole model, computes the gradient of its share of the batch and averages it with its peers:

    g = 1/N · Σ_n g_n            traffic a rank and step: 2(N−1)/N · Ψ elements (ring all-reduce)

    N  ranks      Ψ  parameters      g_n  [Ψ], the gradient of rank n's share

Three forms, each adding one idea of §3.2 to the one before:

    naive     one all-reduce for each parameter, after the backward pass
    buckets   gradients lie in buckets in reverse order of the forward pass; a bucket is sent when its last gradient is
              there, while the backward pass goes on below it
    no_sync   of several micro-batches only the last one communicates

        backward    layer 3 ──▶ layer 2 ──▶ layer 1 ──▶ layer 0
        network           └─ bucket 0 ─────┘└─ bucket 1 ─────┘└─ bucket 2
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.models.flat import distinct, flatten, views
from impls.models.mesh import share
from impls.models.optimizer import clip, optimizer
from impls.models.weights import build_model

BUCKET_BYTES = 25 * 2**20  # §3.2.3: large enough for bandwidth, small enough to overlap
FIRST_BUCKET_BYTES = 2**20  # the first to be ready is small, so that the network starts early


class Replica:
    """One rank's whole model; parameters and gradients are views of two flat buffers."""

    def __init__(self, workload: Workload, bucketed: bool) -> None:
        self.workload, self.rank, self.ranks = workload, dist.get_rank(), dist.get_world_size()
        self.model = build_model(workload)
        # Backward visits parameters last to first; in this order a bucket is one slice.
        self.ordered = distinct(self.model.parameters())[::-1]
        self.weights = flatten(self.ordered)
        dist.broadcast(self.weights, src=0)  # §3.2.1: all start from rank 0's parameters
        self.flat = torch.zeros_like(self.weights)
        for parameter, view in zip(self.ordered, views(self.flat, self.ordered), strict=True):
            parameter.grad = view
        narrow = self.weights.dtype.itemsize < 4
        self.master = self.weights.float() if narrow else self.weights
        self.optimizer = optimizer([self.master], workload)
        self.pending: list[dist.Work] = []
        self.sync = True
        if bucketed:
            for parameters, buffer in self._buckets():
                self._reduce_when_ready(parameters, buffer)
        self.bucketed = bucketed

    def _buckets(self) -> list[tuple[Sequence[nn.Parameter], Tensor]]:
        """Runs of parameters whose gradients fill a bucket, with their slice of the flat gradient."""
        runs: list[list[nn.Parameter]] = [[]]
        room = FIRST_BUCKET_BYTES
        for parameter in self.ordered:
            if runs[-1] and sum(p.nbytes for p in runs[-1]) + parameter.nbytes > room:
                runs.append([])
                room = BUCKET_BYTES
            runs[-1].append(parameter)
        return list(zip(runs, self.flat.split([sum(p.numel() for p in run) for run in runs]), strict=True))

    def _reduce_when_ready(self, parameters: Sequence[nn.Parameter], buffer: Tensor) -> None:
        missing = set(parameters)

        def arrived(parameter: Tensor) -> None:
            missing.discard(parameter)  # type: ignore[arg-type]
            if not missing:
                missing.update(parameters)
                if self.sync:
                    self.pending.append(dist.all_reduce(buffer, async_op=True))

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(arrived)

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = list(share(batch, self.workload, self.rank, self.ranks))
        total = torch.zeros((), device=self.flat.device)
        for index, micro in enumerate(micro_batches):
            self.sync = index == len(micro_batches) - 1
            loss = self.model(*micro) / len(micro_batches)
            (loss / self.ranks).backward()  # dividing here makes the sum over ranks their mean
            total += loss.detach()
        if not self.bucketed:
            for parameter in self.ordered:
                dist.all_reduce(parameter.grad)
        for work in self.pending:
            work.wait()
        self.pending.clear()
        return total

    def update(self) -> None:
        clip([self.flat], self.workload.max_grad_norm)
        self.master.grad = self.flat.to(self.master.dtype)
        self.optimizer.step()
        self.master.grad = None
        if self.master is not self.weights:
            self.weights.copy_(self.master)
        self.flat.zero_()

    def _named(self, buffer: Tensor) -> Mapping[str, Tensor]:
        of = dict(zip(self.ordered, views(buffer, self.ordered), strict=True))
        return {name: of[parameter].cpu() for name, parameter in self.model.named_parameters()}

    def gradients(self) -> Mapping[str, Tensor]:
        return self._named(self.flat)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._named(self.master.detach())


def build(workload: Workload, topology: Topology, bucketed: bool = True, micro_batches: int = 0) -> Replica:
    """``micro_batches`` overrides the workload's, to accumulate where it does not."""
    return Replica(workload.with_(micro_batches=micro_batches) if micro_batches else workload, bucketed)
