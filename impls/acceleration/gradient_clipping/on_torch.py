"""PyTorch's ``clip_grad_norm_``: on plain tensors under DDP, on DTensors under FSDP2 and tensor parallelism."""

from torch.nn.utils import clip_grad_norm_

from harness.spec import Topology, Trainer, Workload
from impls.acceleration.gradient_clipping.layout import SCHEDULE, check, pipelined
from impls.parallelism.data_parallel.on_torch import DDP
from impls.parallelism.hybrid_3d import on_torch as hybrid
from impls.parallelism.pipeline_parallel import on_torch as pipeline
from impls.parallelism.tensor_parallel.on_torch import TensorParallel
from impls.parallelism.zero.on_torch import Sharded


class Clipped(DDP):
    def update(self) -> None:
        if self.workload.max_grad_norm:
            clip_grad_norm_(self.model.parameters(), self.workload.max_grad_norm)
        self.optimizer.step()


def build(workload: Workload, topology: Topology, stage: int = 0) -> Trainer:
    check(topology, stage)
    if topology.ep > 1:
        return hybrid.build(workload, topology)
    if topology.tp > 1:
        return TensorParallel(workload, topology)
    if topology.pp > 1:
        return pipeline.build(pipelined(workload, topology), topology, SCHEDULE)
    return Sharded(workload, topology, reshard=stage == 3) if stage else Clipped(workload, topology)
