"""PyTorch's ``clip_grad_norm_``: on plain tensors under DDP, on DTensors under FSDP2 and tensor parallelism. It cannot
clip over the stages of a pipeline."""

from torch.distributed.pipelining import Schedule1F1B
from torch.nn.utils import clip_grad_norm_

from harness.spec import Topology, Trainer, Unsupported, Workload
from impls.acceleration.gradient_clipping.layout import check, pipelined
from impls.engines.torch.ddp import DDP
from impls.engines.torch.fsdp import Sharded
from impls.engines.torch.pipeline import Pipelining
from impls.engines.torch.tensor_parallel import TensorParallel


class Clipped(DDP):
    def update(self) -> None:
        if self.workload.max_grad_norm:
            clip_grad_norm_(self.model.parameters(), self.workload.max_grad_norm)
        self.optimizer.step()


def build(workload: Workload, topology: Topology, stage: int = 0) -> Trainer:
    check(topology, stage)
    if topology.ep > 1:
        raise Unsupported("PyTorch itself has no layer with experts on several ranks")
    if topology.tp > 1:
        return TensorParallel(workload, topology)
    if topology.pp > 1:
        return Pipelining(pipelined(workload, topology), topology, Schedule1F1B, range(topology.pp))
    return Sharded(workload, topology, reshard=stage == 3) if stage else Clipped(workload, topology)
