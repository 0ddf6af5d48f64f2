"""Megatron-Core's distributed optimizer: ZeRO stage 1 on its DistributedDataParallel."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

from harness.spec import Topology, Unsupported, Workload
from impls.parallelism.data_parallel.on_megatron import DataParallel


class DistributedOptimizer(DataParallel):
    def __init__(self, workload: Workload, topology: Topology, instances: int = 1) -> None:
        if workload.optimizer != "adamw":
            raise Unsupported(f"Megatron-Core's distributed optimizer takes Adam only, not {workload.optimizer}")
        super().__init__(workload, topology, shard=True, instances=instances)

    def gradients(self) -> Mapping[str, Tensor]:
        # After the reduce-scatter only this rank's own part of the buffer holds the mean.
        return self._gather((p, place, p.main_grad.flatten()[place]) for p, _, place in self._owned())

    def parameters(self) -> Mapping[str, Tensor]:
        return self._gather((p, place, master) for p, master, place in self._owned())

    def _owned(self) -> Iterator[tuple[nn.Parameter, Tensor, slice]]:
        """Each parameter of which this rank owns a part: the parameter, the part's master, its place."""
        for optimizer in self.optimizer.chained_optimizers:
            parameters = chain(*optimizer.model_float16_groups, *optimizer.model_fp32_groups)
            masters = chain(*optimizer.shard_fp32_from_float16_groups, *optimizer.shard_fp32_groups)
            for parameter, master in zip(parameters, masters, strict=True):
                place = optimizer._get_model_param_range_map(parameter)["param"]
                yield parameter, master.detach(), slice(place.start, place.end)

    def _gather(self, parts: Iterable[tuple[nn.Parameter, slice, Tensor]]) -> Mapping[str, Tensor]:
        """Whole float32 tensors from the parts of every rank of an instance, each element owned by one of them."""
        instance = parallel_state.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=True)
        whole = {p: torch.zeros(p.numel(), device=p.device) for p in self.names.values()}
        for parameter, place, part in parts:
            whole[parameter][place] = part
        for tensor in whole.values():
            dist.all_reduce(tensor, group=instance)
        return {name: whole[parameter].view_as(parameter).cpu() for name, parameter in self.names.items()}


def build(workload: Workload, topology: Topology, stage: int) -> DistributedOptimizer:
    if stage != 1:
        raise Unsupported(f"Megatron-Core's distributed optimizer is ZeRO stage 1, not {stage}")
    return DistributedOptimizer(workload, topology)
