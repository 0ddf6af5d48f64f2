"""PyTorch's DTensor: ``parallelize_module`` with column-wise, row-wise and loss parallelism (no gathered logits)."""

from harness.spec import Topology, Workload
from impls.engines.torch.tensor_parallel import TensorParallel


def build(workload: Workload, topology: Topology) -> TensorParallel:
    return TensorParallel(workload, topology)
