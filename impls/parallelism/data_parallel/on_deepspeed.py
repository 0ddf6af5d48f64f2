"""DeepSpeed without ZeRO: every rank holds everything, gradients are all-reduced."""

from collections.abc import Mapping

from torch import Tensor

from harness.spec import Topology, Workload
from impls.common.deepspeed import Engine


class DataParallel(Engine):
    def __init__(self, workload: Workload, topology: Topology) -> None:
        super().__init__(workload, topology, {"stage": 0})

    def parameters(self) -> Mapping[str, Tensor]:
        masters = self.engine.optimizer.param_groups[0]["params"]  # in bfloat16 its float32 copies
        return {name: master.detach().cpu() for name, master in zip(self.names, masters, strict=True)}


def build(workload: Workload, topology: Topology, micro_batches: int = 0) -> DataParallel:
    """``micro_batches`` overrides the workload's; only the last of them communicates."""
    return DataParallel(workload.with_(micro_batches=micro_batches) if micro_batches else workload, topology)
