"""FairScale: its OSS, an optimizer whose states are divided, behind DistributedDataParallel (stage 1) or its own
ShardedDataParallel (stage 2), which reduces each gradient to the rank that steps it."""

import contextlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale.optim.oss import OSS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.models.step import accumulate
from impls.models.weights import build_model


class FairScale:
    """``to_none``: gradients are dropped after a step by the optimizer's ``zero_grad()``, as is its default since
    PyTorch 2.0; ShardedDataParallel's own keeps the tensors, which are views of its buckets."""

    def __init__(self, workload: Workload, topology: Topology, stage: int, to_none: bool) -> None:
        if stage == 3:
            raise Unsupported("FairScale's FullyShardedDataParallel asks CUDA for streams at every step")
        if workload.element_size < 4:
            raise Unsupported("FairScale's OSS keeps no float32 master weights for a bf16 model")
        self.workload, self.topology, self.to_none = workload, topology, to_none
        module = build_model(workload)
        options = {"lr": workload.lr, "weight_decay": workload.weight_decay}
        if workload.optimizer == "adamw":
            options |= {"betas": workload.betas, "eps": workload.eps}
        self.optimizer = OSS(
            module.parameters(), torch.optim.AdamW if workload.optimizer == "adamw" else torch.optim.SGD, **options
        )
        self.model: nn.Module = (
            ShardedDataParallel(module, self.optimizer)
            if stage == 2
            else DistributedDataParallel(module, gradient_as_bucket_view=True)
        )
        self.names = dict(module.named_parameters())

    def backward(self, batch: Batch) -> Tensor:
        def around(last: bool) -> contextlib.AbstractContextManager[object]:
            return contextlib.nullcontext() if last else self.model.no_sync()

        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.topology.dp, around=around)

    def update(self) -> None:
        if self.workload.max_grad_norm:
            self.optimizer.clip_grad_norm(self.workload.max_grad_norm)
        self.optimizer.step()
        (self.optimizer if self.to_none else self.model).zero_grad(set_to_none=self.to_none)

    def gradients(self) -> Mapping[str, Tensor]:
        found = {}
        for name, parameter in self.names.items():
            found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            dist.broadcast(found[name], self.optimizer._param_to_rank[parameter])
        return found

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: parameter.detach().cpu() for name, parameter in self.names.items()}


def build(workload: Workload, topology: Topology, stage: int) -> FairScale:
    return FairScale(workload, topology, stage, to_none=False)


def build_default(workload: Workload, topology: Topology, stage: int) -> FairScale:
    return FairScale(workload, topology, stage, to_none=True)
