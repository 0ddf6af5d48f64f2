"""PyTorch's DistributedDataParallel."""

from harness.spec import Topology, Workload
from impls.engines.torch.ddp import DDP


def build(workload: Workload, topology: Topology, micro_batches: int = 0) -> DDP:
    return DDP(workload.with_(micro_batches=micro_batches) if micro_batches else workload, topology)
