"""ZeRO: data parallelism without redundant model states (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward
Training Trillion Parameter Models", §5, §7).

Mixed-precision Adam keeps 16 bytes a parameter: weights 2, gradients 2, and K = 12 of float32 master weights, momentum
and variance (§3.1). Data parallelism keeps them on each of N_d ranks; each stage of ZeRO divides one more of them:

                 a rank keeps, bytes                            a rank sends a step, elements (§7)
    baseline     16Ψ           = 2Ψ + 2Ψ + KΨ                   2Ψ   all-reduce of gradients
    1 P_os       4Ψ + 12Ψ/N_d  = 2Ψ + 2Ψ + KΨ/N_d               2Ψ   reduce-scatter of gradients, all-gather of weights
    2 P_os+g     2Ψ + 14Ψ/N_d  = 2Ψ + (2 + K)Ψ/N_d              2Ψ   the same, bucket by bucket
    3 P_os+g+p   16Ψ/N_d       = (2 + 2 + K)Ψ/N_d               3Ψ   all-gather in forward and in backward pass,
                                                                     reduce-scatter of gradients
    Ψ  parameters       N_d  data-parallel ranks       K  bytes a parameter of the optimizer's states

optimizer.py has stages 1 and 2, hooks.py has stage 3. This file has the training loop around them, the same for all.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.clipping import clip_by_global_norm
from impls.common.decoder import Decoder
from impls.common.flat import distinct, gathered
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.parallelism.zero.hooks import Unit, Zero3, modules
from impls.parallelism.zero.optimizer import Zero1, Zero2, reduce_scatter


class Part(Protocol):
    """One rank's part of some parameters: ``master`` and ``gradient`` are [Ψ/N_d], flat."""

    parameters: Sequence[nn.Parameter]
    weights: Tensor  # [Ψ], padded
    master: Tensor
    gradient: Tensor | None


class Stage(Protocol):
    """Zero1, Zero2 or Zero3."""

    partitions: Sequence[Part]

    def reduce(self) -> None:
        """After the last backward pass of a step: each partition has its gradient."""

    def step(self) -> None:
        """Steps the masters; afterwards the model has the new weights."""


class Zero:
    """One rank of ZeRO in training."""

    def __init__(self, model: Decoder, stage: Stage, group: dist.ProcessGroup, workload: Workload) -> None:
        self.model, self.stage, self.group, self.workload = model, stage, group, workload

    def backward(self, batch: Batch) -> Tensor:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        loss = accumulate(self.model, batch, self.workload, rank, ranks, scale=1 / ranks)  # makes Σ over ranks the mean
        self.stage.reduce()
        return loss

    @torch.no_grad()
    def update(self) -> None:
        # No other rank of the group owns this rank's parts, so squares are added over the group.
        clip_by_global_norm({(self.group,): self._gradients()}, self.workload.max_grad_norm)
        self.stage.step()

    def _gradients(self) -> list[Tensor]:
        return [part.gradient for part in self.stage.partitions if part.gradient is not None]

    def gradients(self) -> Mapping[str, Tensor]:
        return self.whole(self._gradients())

    def parameters(self) -> Mapping[str, Tensor]:
        return self.whole([part.master for part in self.stage.partitions])

    def whole(self, mine: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """All ranks' parts of each partition, by the parameters' names."""
        found: dict[nn.Parameter, Tensor] = {}
        for part, tensor in zip(self.stage.partitions, mine, strict=True):
            found.update(zip(part.parameters, gathered(tensor, part.parameters, self.group), strict=True))
        return {name: found[parameter].cpu() for name, parameter in self.model.named_parameters()}

    def padding(self) -> int:
        """The number of elements that pad partitions to a multiple of the ranks."""
        return sum(part.weights.numel() for part in self.stage.partitions) - self.workload.model.parameters


def build(workload: Workload, topology: Topology, stage: int = 3) -> Zero:
    model, group = build_model(workload), dist.group.WORLD
    if stage == 3:
        if workload.applied_twice:
            raise Unsupported("stage 3 gathers each layer for one forward pass before the backward pass")
        units = [Unit(parameters, group) for _, parameters in modules(model)]
        zero3 = Zero3(model, units, workload, reduce=partial(reduce_scatter, group=group))
        return Zero(model, zero3, group, workload)
    zero = {1: Zero1, 2: Zero2}[stage]
    return Zero(model, zero(distinct(model.parameters()), workload, group), group, workload)
