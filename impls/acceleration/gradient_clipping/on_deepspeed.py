"""DeepSpeed's ``gradient_clipping``, of which each of its optimizers has its own: stages 0, 1 (and 2), 3, AutoTP."""

from harness.spec import Topology, Trainer, Workload
from impls.acceleration.gradient_clipping.layout import SCHEDULE, check, pipelined
from impls.parallelism.data_parallel.on_deepspeed import DataParallel
from impls.parallelism.hybrid_3d import on_deepspeed as hybrid
from impls.parallelism.pipeline_parallel import on_deepspeed as pipeline
from impls.parallelism.tensor_parallel.on_deepspeed import TensorParallel
from impls.parallelism.zero.on_deepspeed import Zero


def build(workload: Workload, topology: Topology, stage: int = 0) -> Trainer:
    check(topology, stage)
    if topology.ep > 1:
        return hybrid.build(workload, topology)
    if topology.tp > 1:
        return TensorParallel(workload, topology)
    if topology.pp > 1:
        return pipeline.build(pipelined(workload, topology), topology, SCHEDULE)
    return Zero(workload, topology, stage) if stage else DataParallel(workload, topology)
