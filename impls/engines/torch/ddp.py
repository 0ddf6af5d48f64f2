"""PyTorch's DistributedDataParallel."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import device
from impls.common.optimizer import MasterWeights, clip
from impls.common.step import accumulate
from impls.common.weights import build_model


class DDP:
    configuration = "DistributedDataParallel(gradient_as_bucket_view=True)"

    def __init__(self, workload: Workload, topology: Topology) -> None:
        self.workload, self.topology = workload, topology
        self.rank = torch.distributed.get_rank()
        model = build_model(workload)
        devices = [device()] if device().type == "cuda" else None
        # Without the view, DDP keeps every gradient twice.
        self.model = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        self.names = [name for name, _ in model.named_parameters()]
        self.optimizer = MasterWeights(model.parameters(), workload)

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, self.rank, self.topology.dp, around=self.around)

    def around(self, last: bool) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if last else self.model.no_sync()

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.model.module.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.names, self.optimizer.masters, strict=True)}
