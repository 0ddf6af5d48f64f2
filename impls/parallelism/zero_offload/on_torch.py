"""PyTorch's FSDP2 with ``CPUOffloadPolicy``: sharded weights, gradients and optimizer on the host.

It offloads the weights in either variant; with ``reshard_after_forward`` off they come once a step and stay gathered up
to the backward pass, as stage 2 has them there.
"""

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

from harness.spec import Topology, Workload
from impls.common.mesh import mesh
from impls.common.optimizer import optimizer
from impls.common.weights import TORCH_DTYPES, build_model
from impls.parallelism.zero.on_torch import Sharded


class Offloaded(Sharded):
    def __init__(self, workload: Workload, topology: Topology, stage: int) -> None:
        self.workload, self.topology, self.shards = workload, topology, mesh(topology)["dp"]
        narrow = TORCH_DTYPES[workload.dtype]
        self.model = build_model(workload, torch.promote_types(narrow, torch.float32))
        options = {
            "mesh": self.shards,
            "mp_policy": MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=narrow),
            "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available()),
            "reshard_after_forward": stage == 3,
        }
        for layer in self.model.model.layers:
            fully_shard(layer, **options)
        fully_shard(self.model, **options)
        # DTensor has a fused AdamW, but no fused SGD.
        self.optimizer = optimizer(self.model.parameters(), workload, fused=workload.optimizer == "adamw")


def build(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> Offloaded:
    return Offloaded(workload, topology, stage)
