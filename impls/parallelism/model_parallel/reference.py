"""Model parallelism by layers (Dean et al. 2012, §3; Huang et al. 2019, figure 2b): the naive pipeline.

    rank 0   F_0 ─┐                         ┌─▶ B_0
    rank 1        └─▶ F_1 ─┐       ┌─▶ B_1 ─┘                activations [b, s, h] ──▶, their gradients ◀──
    rank 2                 └─▶ F_2 B_2 ────┘

Each rank holds a p-th of the layers and waits for its neighbours: one of p ranks works, and each is idle for (p − 1)/p
of the time. Several micro-batches pass one after the other. Pipelines (the topic pipeline_parallel) fill the idle time.

    p ranks   b batch   s sequence   h hidden_size
"""

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Span, Spans, Topology, Workload
from impls.common.mesh import device
from impls.common.watch import now
from impls.parallelism.pipeline_parallel.part import Part
from impls.parallelism.pipeline_parallel.schedules import plan_of


class ModelParallel:
    """The pipeline's stages, weights and optimizer, with plain sends and receives instead of a schedule."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        self.part = part = Part(workload, topology, plan_of(workload, topology, "gpipe", 1))
        self.rank, self.group = part.pp.rank(), part.pp
        self.stage = part.stages[self.rank]
        self.spans: Spans | None = None
        self.update, self.gradients, self.parameters = part.update, part.gradients, part.parameters

    def record(self, spans: Spans | None) -> None:
        self.spans = spans

    def backward(self, batch: Batch) -> Tensor:
        micro_batches, weights = self.part.share(batch)
        total = torch.zeros((), device=device(), dtype=torch.float64)
        for micro, (mine, weight) in enumerate(zip(micro_batches, weights, strict=True)):
            total += self.pass_through(micro, mine, weight)
        return self.part.combine(total)

    def pass_through(self, micro: int, batch: Batch, weight: float) -> Tensor:
        """One micro-batch forward and backward; returns the weighted loss on the last rank, and 0 elsewhere."""
        rank, stage = self.rank, self.stage
        x = batch.inputs if stage.first else self._receive(batch, rank - 1).requires_grad_()
        start = now(self.spans)
        out = stage(x, batch.labels) * weight if stage.last else stage(x)
        self._did("F", micro, start)
        gradient = None
        if not stage.last:
            dist.send(out.detach(), group=self.group, group_dst=rank + 1)
            gradient = self._receive(batch, rank + 1)
        start = now(self.spans)
        out.backward(gradient)
        self._did("B", micro, start)
        if not stage.first:
            dist.send(x.grad, group=self.group, group_dst=rank - 1)
        return out.detach() if stage.last else torch.zeros((), device=device())

    def _receive(self, batch: Batch, source: int) -> Tensor:
        dtype = next(self.stage.parameters()).dtype
        buffer = torch.empty(self.stage.message(batch.inputs), dtype=dtype, device=device())  # [b, s, h]
        dist.recv(buffer, group=self.group, group_src=source)
        return buffer

    def _did(self, kind: str, micro: int, start: float) -> None:
        if self.spans is not None:
            self.spans.append(Span(kind, self.rank, micro, start, now(self.spans)))


def build(workload: Workload, topology: Topology) -> ModelParallel:
    return ModelParallel(workload, topology)
