"""ZeRO-1 and ZeRO-2 are an optimizer: every rank has all weights, and steps 1/N_d of them (Rajbhandari et al. 2020).

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

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Workload
from impls.common.flat import flatten, flatten_gradients, runs, views
from impls.common.optimizer import optimizer


class Partition:
    """Some parameters as one flat buffer, of which this rank owns the optimizer's states of one part.

    ``weights`` [Ψ] what the model computes with: its parameters are views
    ``master`` [Ψ/N_d] this rank's part in float32; the very same memory where the weights are as wide
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

    def share(self) -> None:
        """After the step every rank gets everybody's part."""
        self.weights[self.own].copy_(self.master)  # rounds
        dist.all_gather_into_tensor(self.weights, self.weights[self.own], group=self.group)


def step(partitions: Sequence[Partition], inner: torch.optim.Optimizer) -> None:
    """Steps what this rank owns, and gathers the weights."""
    for partition in partitions:
        assert partition.gradient is not None
        partition.master.grad, partition.gradient = partition.gradient.to(partition.master.dtype), None
    inner.step()
    inner.zero_grad()
    for partition in partitions:
        partition.share()


class Zero1:
    """P_os: the optimizer's states are partitioned; weights and gradients are whole on every rank."""

    def __init__(self, parameters: Sequence[nn.Parameter], workload: Workload, group: dist.ProcessGroup) -> None:
        self.partition = Partition(parameters, group)
        self.partitions = [self.partition]
        self.inner = optimizer([self.partition.master], workload)
        self.gradients = torch.zeros_like(self.partition.weights)  # [Ψ], to which backward passes add
        self.gradient = self.gradients[self.partition.own]  # [Ψ/N_d], where the sum of this rank's part will be
        for parameter, view in zip(parameters, views(self.gradients, parameters), strict=True):
            parameter.grad = view

    def reduce(self) -> None:
        """After the last backward pass of a step."""
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
        self.under_way: tuple[dist.Work, Partition, Tensor] | None = None
        for partition in self.partitions:
            when_complete(partition.parameters, partial(self._start, partition))

    def _start(self, partition: Partition) -> None:
        self.reduce()  # one bucket at a time, so that no two of them take memory
        full = take_gradients(partition.parameters, torch.empty_like(partition.weights))  # [Ψ_b]
        part = torch.empty_like(full[partition.own])  # [Ψ_b/N_d]
        work = dist.reduce_scatter_tensor(part, full, group=partition.group, async_op=True)
        self.under_way = work, partition, part

    def reduce(self) -> None:
        """Waits for the reduction that goes on under the backward pass, and adds its result."""
        if self.under_way is not None:
            (work, partition, part), self.under_way = self.under_way, None
            work.wait()
            partition.gradient = part if partition.gradient is None else partition.gradient.add_(part)

    def step(self) -> None:
        step(self.partitions, self.inner)


def when_complete(parameters: Sequence[nn.Parameter], then: Callable[[], None]) -> None:
    """Calls ``then`` in every backward pass from now on, as soon as the gradients of all ``parameters`` are there."""
    missing = len(parameters)

    def arrived(_: Tensor) -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            missing = len(parameters)
            then()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(arrived)


def take_gradients(parameters: Sequence[nn.Parameter], into: Tensor) -> Tensor:
    """Moves the parameters' gradients into one flat buffer [Ψ_b], whose padding becomes 0."""
    flatten_gradients(parameters, into)
    for parameter in parameters:
        parameter.grad = None
    return into
