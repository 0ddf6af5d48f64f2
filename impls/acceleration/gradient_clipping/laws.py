"""The cost of clipping: one number per group of ranks. The rest is the traffic of the underlying parallelism."""

from harness.spec import Topology, Workload
from impls.acceleration.gradient_clipping.layout import SCHEDULE, pipelined
from impls.parallelism.data_parallel import laws as data_parallel
from impls.parallelism.hybrid_3d import laws as hybrid
from impls.parallelism.pipeline_parallel import laws as pipeline_parallel
from impls.parallelism.tensor_parallel import laws as tensor_parallel
from impls.parallelism.zero import laws as zero


def traffic(workload: Workload, topology: Topology, stage: int = 0) -> float | None:
    """Bytes of data that a rank sends in a step, the same as without clipping."""
    if topology.ep > 1:
        return hybrid.traffic(workload, topology)
    if topology.tp > 1:
        return tensor_parallel.traffic(workload, topology)
    if topology.pp > 1:
        return pipeline_parallel.traffic(pipelined(workload, topology), topology, SCHEDULE)
    return zero.traffic(workload, topology, stage) if stage else data_parallel.traffic(workload, topology)
