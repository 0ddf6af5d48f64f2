"""PyTorch's FSDP2, ``fully_shard``: one unit per layer, and one for the rest."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import mesh
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.common.weights import TORCH_DTYPES, build_model


class Sharded:
    """Stage 2 keeps the weights gathered between forward and backward pass, stage 3 (``reshard``) does not. ``shards``:
    the mesh to shard over, by default all data-parallel ranks. ``offload``: the place of shards between steps."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        reshard: bool | int,
        shards: DeviceMesh | None = None,
        offload: OffloadPolicy | None = None,
    ) -> None:
        self.workload, self.topology, self.shards = workload, topology, shards or mesh(topology)["dp"]
        # FSDP2's recipe: the sharded float32 weights are the masters; the gathered copies are narrow.
        self.model = build_model(workload, max(TORCH_DTYPES[workload.dtype], torch.float32, key=lambda d: d.itemsize))
        narrow = TORCH_DTYPES[workload.dtype]
        self.configuration = f"fully_shard(layer), fully_shard(model): reshard_after_forward={reshard}, {narrow} passes"
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=narrow)
        options: dict[str, Any] = {"mesh": self.shards, "mp_policy": policy, "reshard_after_forward": reshard}
        options["offload_policy"] = offload or OffloadPolicy()  # the default: no offload
        for layer in self.model.model.layers:
            fully_shard(layer, **options)
        root = fully_shard(self.model, **options)
        if workload.model.stochastic_depth:
            root.set_reduce_scatter_unused_params(True)
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
        # Other ranks may have a gradient where this one has none.
        held = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.model.named_parameters()}
        return {n: _whole(gradient) for n, gradient in held.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: _whole(p.detach()) for n, p in self.model.named_parameters()}

    def padding(self) -> int:
        """FSDP2 pads each parameter's first dimension to a multiple of the ranks."""
        return sum(-p.shape[0] % self.shards.size(-1) * p[0].numel() for p in self.model.parameters())


def _whole(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor().cpu()
