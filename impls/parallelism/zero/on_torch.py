"""PyTorch's own: ZeroRedundancyOptimizer (stage 1) and FSDP2's ``fully_shard`` (stages 2 and 3)."""

import contextlib
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.common.optimizer import clip, optimizer
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.engines.torch.fsdp import Sharded


class Redundancy:
    """DDP with ZeroRedundancyOptimizer: whole parameters are assigned to ranks, greedily by size."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        if workload.element_size < 4:
            raise Unsupported("ZeroRedundancyOptimizer keeps no float32 master weights for a bf16 model")
        self.workload, self.topology = workload, topology
        devices = [device()] if device().type == "cuda" else None
        self.model = DistributedDataParallel(
            build_model(workload),
            device_ids=devices,
            gradient_as_bucket_view=True,
            find_unused_parameters=workload.model.stochastic_depth,
        )

        def make(parameters: Iterable[Tensor], **_: object) -> torch.optim.Optimizer:
            return optimizer(parameters, workload)

        self.optimizer = ZeroRedundancyOptimizer(self.model.parameters(), make)

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(
            self.model, batch, self.workload, dist.get_rank(), self.topology.dp, around=self.only_the_last_is_sent
        )

    def only_the_last_is_sent(self, last: bool) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if last else self.model.no_sync()

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        held = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.model.module.named_parameters()}
        return {n: gradient.cpu() for n, gradient in held.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: p.detach().cpu() for n, p in self.model.module.named_parameters()}


def build(workload: Workload, topology: Topology, stage: int = 3) -> Sharded | Redundancy:
    return Redundancy(workload, topology) if stage == 1 else Sharded(workload, topology, reshard=stage == 3)
