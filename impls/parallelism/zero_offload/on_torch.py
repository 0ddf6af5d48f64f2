"""PyTorch's FSDP2 with ``CPUOffloadPolicy``: sharded weights, gradients and optimizer on the host.

It offloads the weights in both variants; with ``reshard_after_forward`` off they are gathered once per step and stay
gathered until the backward pass, as in stage 2.
"""

import torch
from torch.distributed.fsdp import CPUOffloadPolicy

from harness.spec import Topology, Workload
from impls.engines.torch.fsdp import Sharded


def build(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> Sharded:
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    return Sharded(workload, topology, reshard=stage == 3, offload=offload)
