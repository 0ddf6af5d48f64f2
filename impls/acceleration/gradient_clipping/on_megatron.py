"""Megatron-Core's ``clip_grad``: in its optimizer for whole parameters, and in the distributed one, ZeRO stage 1."""

from harness.spec import Topology, Trainer, Workload
from impls.acceleration.gradient_clipping.layout import SCHEDULE, check, pipelined
from impls.parallelism.data_parallel.on_megatron import DataParallel
from impls.parallelism.hybrid_3d import on_megatron as hybrid
from impls.parallelism.pipeline_parallel import on_megatron as pipeline
from impls.parallelism.tensor_parallel.on_megatron import TensorParallel
from impls.parallelism.zero.on_megatron import DistributedOptimizer


def build(workload: Workload, topology: Topology, stage: int = 0) -> Trainer:
    check(topology, stage)
    if topology.ep > 1:
        return hybrid.build(workload, topology)
    if topology.tp > 1:
        return TensorParallel(workload, topology)
    if topology.pp > 1:
        return pipeline.build(pipelined(workload, topology), topology, SCHEDULE)
    return DistributedOptimizer(workload, topology) if stage else DataParallel(workload, topology)
