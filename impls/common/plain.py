"""The dense model on one process: in float64 it is the oracle, in the case's own precision it gives the noise floor."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.spec import Batch, MoeConfig, Topology, Workload
from impls.common import weights
from impls.common.mesh import share
from impls.common.optimizer import MasterWeights, clip, optimizer
from impls.common.routers import routers
from impls.common.weights import build_model


class Plain:
    """``permute`` reorders the sequences of each batch; ``math`` selects unfused kernels, SDPA's and the optimizer's.
    Both are honest variants. ``balanced``: how many sequences share a balance loss of the routers; the micro-batches
    here are not smaller."""

    def __init__(self, workload: Workload, permute: bool = False, math: bool = False, balanced: int = 0) -> None:
        most = workload.batch_size // (balanced or 1)
        self.workload = workload.with_(micro_batches=min(workload.micro_batches, most))
        self.permute = permute
        self.attention = partial(sdpa_kernel, SDPBackend.MATH) if math else contextlib.nullcontext
        self.model = build_model(workload)
        for router in routers(self.model) if balanced else ():
            router.balanced = balanced
        self.names = [name for name, _ in self.model.named_parameters()]
        self.optimizer = MasterWeights(self.model.parameters(), workload, partial(optimizer, fused=not math))

    def backward(self, batch: Batch) -> Tensor:
        if self.permute:
            batch = Batch(batch.inputs.flip(0), batch.labels.flip(0))
        total = torch.zeros((), dtype=torch.float64)
        for micro, part in share(batch, self.workload, 0, 1):
            with self.attention():
                loss = self.model(*micro) * part
                loss.backward()
            total += loss.detach().cpu()
        for parameter in self.model.parameters():
            if parameter.grad is None:  # of a layer that all sequences skip
                parameter.grad = torch.zeros_like(parameter)
        return total

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.model.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.names, self.optimizer.masters, strict=True)}


def build(
    workload: Workload, topology: Topology, permute: bool = False, math: bool = False, balanced: int = 0
) -> Plain:
    return Plain(workload, permute, math, balanced)


def options(workload: Workload, topology: Topology, **variant: Any) -> dict[str, Any]:
    """Every variant of every engine computes the same function as this model, where the topology says at most which
    sequences are a micro-batch."""
    model = workload.model
    if isinstance(model, MoeConfig) and model.router_aux_loss_coef and not model.seq_aux:
        parts = 1 if model.global_aux else topology.dp * workload.micro_batches
        return {"balanced": workload.batch_size // parts}
    return {}


def initial(workload: Workload, balanced: int = 0) -> Iterator[tuple[str, Tensor]]:
    return weights.initial(workload)
