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

import contextlib
from collections.abc import Iterator, Mapping

import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.flat import distinct, runs, views
from impls.common.optimizer import MasterWeights, clip
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.parallelism.data_parallel.bucket import Bucket

SMALLEST = 2**20  # bytes of a bucket: an extra message between busy CPU ranks takes as long as this many


class Naive:
    """One all-reduce for each parameter, after the backward pass."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.rank, self.ranks = workload, dist.get_rank(), dist.get_world_size()
        self.model = build_model(workload)
        for parameter in self.model.parameters():
            dist.broadcast(parameter.detach(), src=0)
        self.optimizer = MasterWeights(self.model.parameters(), workload)

    def backward(self, batch: Batch) -> Tensor:
        # Dividing by N here turns the sum over ranks into their mean.
        loss = accumulate(self.model, batch, self.workload, self.rank, self.ranks, scale=1 / self.ranks)
        for parameter in self.model.parameters():
            dist.all_reduce(parameter.grad)
        return loss

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad.cpu() for name, p in self.model.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        named = zip(self.model.named_parameters(), self.optimizer.masters, strict=True)
        return {name: master.detach().cpu() for (name, _), master in named}


class Bucketed:
    """Buckets that are sent while the backward pass goes on; nothing is sent before the last micro-batch."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.rank, self.ranks = workload, dist.get_rank(), dist.get_world_size()
        self.model = build_model(workload)
        self.sync = True
        # The backward pass reaches the last parameters first.
        self.buckets = [Bucket(run, workload) for run in runs(distinct(self.model.parameters())[::-1], SMALLEST)]
        for bucket in self.buckets:
            self._send_when_full(bucket)

    def _send_when_full(self, bucket: Bucket) -> None:
        def arrived(parameter: nn.Parameter) -> None:
            if bucket.arrive(parameter) and self.sync:
                bucket.send()

        for parameter in bucket.parameters:
            parameter.register_post_accumulate_grad_hook(arrived)

    @contextlib.contextmanager
    def _sending(self, last: bool) -> Iterator[None]:
        self.sync = last
        yield

    def backward(self, batch: Batch) -> Tensor:
        loss = accumulate(
            self.model, batch, self.workload, self.rank, self.ranks, scale=1 / self.ranks, around=self._sending
        )
        for bucket in self.buckets:
            bucket.wait()
        return loss

    def update(self) -> None:
        clip([bucket.gradient for bucket in self.buckets if bucket.gradient is not None], self.workload.max_grad_norm)
        for bucket in self.buckets:
            bucket.update()

    def _named(self, flat: Mapping[Bucket, Tensor]) -> Mapping[str, Tensor]:
        of: dict[nn.Parameter, Tensor] = {}
        for bucket, buffer in flat.items():
            of.update(zip(bucket.parameters, views(buffer, bucket.parameters), strict=True))
        return {name: of[parameter].cpu() for name, parameter in self.model.named_parameters()}

    def gradients(self) -> Mapping[str, Tensor]:
        return self._named({bucket: bucket.gradient for bucket in self.buckets if bucket.gradient is not None})

    def parameters(self) -> Mapping[str, Tensor]:
        return self._named({bucket: bucket.master.detach() for bucket in self.buckets})


def build(workload: Workload, topology: Topology, bucketed: bool = True, micro_batches: int = 0) -> Naive | Bucketed:
    """``micro_batches`` overrides the workload's, for accumulation without it."""
    workload = workload.with_(micro_batches=micro_batches) if micro_batches else workload
    return Bucketed(workload) if bucketed else Naive(workload)
