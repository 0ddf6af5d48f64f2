"""ZeRO-1 and ZeRO-2 as an optimizer: every rank has all weights, and steps 1/N_d of them (Rajbhandari et al. 2020).

weights θ    [ θ_0 | θ_1 | … | θ_{N_d − 1} ]         flat, padded to a multiple of N_d; rank i owns partition i

                          ZeRO-1, P_os (§5.1)                    ZeRO-2, P_os+g (§5.2)
1. backward pass          gradients g [Ψ] are kept               a bucket's g [Ψ_b], once it is complete, is
2. g_i ← Σ_ranks g        one reduce-scatter after the last      reduce-scattered while the pass goes on, and freed
3. θ_i ← Adam(θ_i, g_i)   in float32, on this rank's partition
4. θ ← all-gather of θ_i

Ψ  parameters       Ψ_b  those of a bucket       N_d  data-parallel ranks       i  this rank
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Workload
from impls.common.flat import flatten, flatten_gradients, in_order, runs, views
from impls.common.optimizer import optimizer


class Partition:
    """Some parameters as one flat buffer; this rank owns the optimizer's states of one part of it.

    ``weights`` [Ψ] the weights of the model, whose parameters are views of it
    ``master`` [Ψ/N_d] this rank's part in float32; the same memory if the weights are float32
    ``gradient`` [Ψ/N_d] this rank's part of the sum over ranks, between backward pass and step
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.parameters, self.group = parameters, group
        self.weights = flatten(parameters, multiple=group.size())  # [Ψ]
        size = self.weights.numel() // group.size()
        self.own = slice(group.rank() * size, (group.rank() + 1) * size)
        part = self.weights[self.own]  # [Ψ/N_d]
        self.master = part.to(torch.promote_types(part.dtype, torch.float32))  # [Ψ/N_d]
        self.gradient: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Takes one micro-batch's reduced gradient."""
        self.gradient = part if self.gradient is None else self.gradient.add_(part)

    def gather(self) -> None:
        """Gathers all ranks' parts of the weights."""
        dist.all_gather_into_tensor(self.weights, self.weights[self.own], group=self.group)


def step(partitions: Sequence[Partition], inner: torch.optim.Optimizer) -> None:
    """Steps this rank's part, and gathers the weights."""
    for partition in partitions:
        assert partition.gradient is not None
        partition.master.grad, partition.gradient = partition.gradient.to(partition.master.dtype), None
    inner.step()
    inner.zero_grad()
    for partition in partitions:
        partition.weights[partition.own].copy_(partition.master)  # rounds
        partition.gather()


class Zero1:
    """P_os: the optimizer's states are partitioned; weights and gradients are whole on every rank."""

    def __init__(self, parameters: Sequence[nn.Parameter], workload: Workload, group: dist.ProcessGroup) -> None:
        self.partition = Partition(parameters, group)
        self.partitions = [self.partition]
        self.inner = optimizer([self.partition.master], workload)
        self.gradients = torch.zeros_like(self.partition.weights)  # [Ψ], accumulated by backward passes
        self.gradient = self.gradients[self.partition.own]  # [Ψ/N_d]
        for parameter, view in zip(parameters, views(self.gradients, parameters), strict=True):
            parameter.grad = view

    def reduce(self) -> None:
        """After the last backward pass of a step."""
        # In place: this rank's part of the sum replaces its part of its own gradients.
        dist.reduce_scatter_tensor(self.gradient, self.gradients, group=self.partition.group)
        self.partition.gradient = self.gradient

    def step(self) -> None:
        step(self.partitions, self.inner)
        self.gradients.zero_()


class Zero2:
    """P_os+g: a gradient is whole only until its bucket is complete."""

    def __init__(self, parameters: Sequence[nn.Parameter], workload: Workload, group: dist.ProcessGroup) -> None:
        self.partitions = [Partition(bucket, group) for bucket in runs(parameters)]
        self.inner = optimizer([partition.master for partition in self.partitions], workload)
        self.reducer = Reducer(partial(reduce_scatter, group=group))
        self.reduce = self.reducer.finish
        buckets = [partition.parameters for partition in self.partitions]
        in_order(buckets, lambda bucket: self.reducer.start(self.partitions[bucket]))

    def step(self) -> None:
        step(self.partitions, self.inner)


def reduce_scatter(whole: Tensor, group: dist.ProcessGroup) -> Callable[[], Tensor]:
    """Starts to sum gradients [Ψ_b] over ranks; waiting returns this rank's part [Ψ_b/N_d]."""
    part = whole.new_empty(whole.numel() // group.size())  # [Ψ_b/N_d]
    work = dist.reduce_scatter_tensor(part, whole, group=group, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return part

    return wait


class Reducible(Protocol):
    """Parameters that are reduced together: a Partition, or a Unit of ZeRO-3."""

    parameters: Sequence[nn.Parameter]
    weights: Tensor

    def add(self, part: Tensor) -> None:
        """Takes one micro-batch's reduced gradient."""


class Reducer:
    """Reduces gradients during the backward pass, one at a time, so that only one whole gradient takes memory."""

    def __init__(self, reduce: Callable[[Tensor], Callable[[], Tensor]]) -> None:
        self.reduce = reduce
        self.under_way: tuple[Reducible, Callable[[], Tensor]] | None = None

    def start(self, target: Reducible) -> None:
        self.finish()
        whole = torch.empty_like(target.weights)  # [Ψ_b]
        flatten_gradients(target.parameters, whole)
        for parameter in target.parameters:
            parameter.grad = None
        self.under_way = target, self.reduce(whole)

    def finish(self) -> None:
        if self.under_way is not None:
            (target, wait), self.under_way = self.under_way, None
            target.add(wait())
