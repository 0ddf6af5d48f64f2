"""PyTorch's own: ZeroRedundancyOptimizer (stage 1) and FSDP2's ``fully_shard`` (stages 2 and 3)."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.mesh import device, mesh
from impls.common.optimizer import clip, optimizer
from impls.common.step import accumulate
from impls.common.weights import TORCH_DTYPES, build_model


class Sharded:
    """Stage 2 keeps the weights gathered between forward and backward pass, stage 3 (``reshard``) does not. ``shards``:
    the mesh over which to shard, by default all data-parallel ranks."""

    def __init__(
        self, workload: Workload, topology: Topology, reshard: bool | int, shards: DeviceMesh | None = None
    ) -> None:
        self.workload, self.topology, self.shards = workload, topology, shards or mesh(topology)["dp"]
        # FSDP2's recipe: the sharded float32 weights are the masters; the gathered copies are narrow.
        self.model = build_model(workload, max(TORCH_DTYPES[workload.dtype], torch.float32, key=lambda d: d.itemsize))
        narrow = TORCH_DTYPES[workload.dtype]
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=narrow)
        options = {"mesh": self.shards, "mp_policy": policy, "reshard_after_forward": reshard}
        for layer in self.model.model.layers:
            fully_shard(layer, **options)
        fully_shard(self.model, **options)
        # DTensor has a fused AdamW, but no fused SGD.
        self.optimizer = optimizer(self.model.parameters(), workload, fused=workload.optimizer == "adamw")

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.topology.dp)

    def update(self) -> None:
        if self.workload.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: _whole(p.grad) for n, p in self.model.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: _whole(p.detach()) for n, p in self.model.named_parameters()}

    def padding(self) -> int:
        """FSDP2 pads each parameter's first dimension to a multiple of the ranks."""
        return sum(-p.shape[0] % self.shards.size(-1) * p[0].numel() for p in self.model.parameters())


def _whole(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor().cpu()


class Redundancy:
    """DDP with ZeroRedundancyOptimizer: whole parameters go to ranks, greedily by size."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        if workload.element_size < 4:
            raise Unsupported("ZeroRedundancyOptimizer keeps no float32 master weights for a bf16 model")
        self.workload, self.topology = workload, topology
        devices = [device()] if device().type == "cuda" else None
        self.model = DistributedDataParallel(build_model(workload), device_ids=devices, gradient_as_bucket_view=True)

        def make(parameters: Iterable[Tensor], **_: object) -> torch.optim.Optimizer:
            return optimizer(parameters, workload)

        self.optimizer = ZeroRedundancyOptimizer(self.model.parameters(), make)

    backward = Sharded.backward

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.model.module.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: p.detach().cpu() for n, p in self.model.module.named_parameters()}


def build(workload: Workload, topology: Topology, stage: int = 3) -> Sharded | Redundancy:
    return Redundancy(workload, topology) if stage == 1 else Sharded(workload, topology, reshard=stage == 3)
