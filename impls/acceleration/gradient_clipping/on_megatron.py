"""Megatron-Core's ``clip_grad``: in its optimizer for whole parameters, and in the distributed one, ZeRO stage 1."""

from harness.spec import Topology, Trainer, Workload
from impls.acceleration.gradient_clipping.layout import check, pipelined
from impls.common.mesh import mesh
from impls.engines.megatron.data_parallel import DataParallel, DistributedOptimizer
from impls.engines.megatron.experts import ExpertParallel
from impls.engines.megatron.gpt import Gpt
from impls.parallelism.hybrid_3d.stage import Experts


def build(workload: Workload, topology: Topology, stage: int = 0) -> Trainer:
    check(topology, stage)
    if topology.ep > 1:
        return ExpertParallel(workload, topology, Experts(mesh(topology), topology))
    if topology.tp > 1:
        return Gpt(workload, topology)
    if topology.pp > 1:
        return Gpt(pipelined(workload, topology), topology, deallocate_pipeline_outputs=True)
    return DistributedOptimizer(workload, topology) if stage else DataParallel(workload, topology)
