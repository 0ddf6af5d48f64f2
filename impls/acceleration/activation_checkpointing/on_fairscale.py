"""FairScale's checkpoint_wrapper around each layer, in PyTorch's DistributedDataParallel."""

import torch
from fairscale.nn import checkpoint_wrapper

from harness.spec import Topology, Unsupported, Workload
from impls.acceleration.activation_checkpointing.segmented import segmented
from impls.engines.torch.ddp import DDP


def build(workload: Workload, topology: Topology, each: int = 0, on_host: bool = False) -> DDP:
    if topology.tp > 1:
        raise Unsupported("DistributedDataParallel has no tensor parallelism")
    torch.manual_seed(workload.seed)  # every variant drops the same elements
    trainer = DDP(workload, topology)
    trainer.configuration = f"{trainer.configuration}; checkpoint_wrapper(layer, offload_to_cpu={on_host})"
    body = trainer.model.module.model
    segmented(body, ())
    for layer in body.layers if each else ():
        checkpoint_wrapper(layer, offload_to_cpu=on_host)
    return trainer
