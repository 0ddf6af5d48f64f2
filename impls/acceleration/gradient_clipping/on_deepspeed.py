"""DeepSpeed's ``gradient_clipping``, which each of its optimizers implements: stages 0, 1 (and 2), 3, AutoTP."""

from harness.spec import Topology, Trainer, Workload
from impls.acceleration.gradient_clipping.layout import check, pipelined
from impls.common.mesh import mesh
from impls.engines.deepspeed.engine import DataParallel
from impls.engines.deepspeed.experts import ExpertParallel
from impls.engines.deepspeed.pipeline import Pipeline
from impls.engines.deepspeed.tensor_parallel import TensorParallel
from impls.engines.deepspeed.zero import Zero
from impls.parallelism.hybrid_3d.stage import Experts


def build(workload: Workload, topology: Topology, stage: int = 0) -> Trainer:
    check(topology, stage)
    if topology.ep > 1:
        return ExpertParallel(workload, topology, Experts(mesh(topology), topology))
    if topology.tp > 1:
        return TensorParallel(workload, topology)
    if topology.pp > 1:
        return Pipeline(pipelined(workload, topology), topology, {"stage": 0})
    return Zero(workload, topology, stage) if stage else DataParallel(workload, topology)
