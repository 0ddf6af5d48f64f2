"""Colossal-AI's LowLevelZeroOptimizer: each parameter is cut into as many parts as there are ranks."""

import contextlib
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from colossalai.zero.low_level import LowLevelZeroOptimizer
from torch import Tensor

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.optimizer import optimizer
from impls.common.precision import without_loss_scale
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.engines import colossalai


class LowLevelZero:
    def __init__(self, workload: Workload, topology: Topology, stage: int) -> None:
        if workload.dtype == "fp64":
            raise Unsupported("Colossal-AI's mixed precision supports only float32, float16 and bfloat16")
        without_loss_scale(workload, "Colossal-AI")
        colossalai.start()
        self.workload, self.topology, self.stage = workload, topology, stage
        self.model = build_model(workload)
        self.names = dict(self.model.named_parameters())
        self.optimizer = LowLevelZeroOptimizer(
            optimizer(self.model.parameters(), workload),
            partition_grad=stage == 2,
            overlap_communication=True,
            clip_grad_norm=workload.max_grad_norm,
            master_weights=workload.element_size < 4,  # by default float32 weights are also copied
        )

    def backward(self, batch: Batch) -> Tensor:
        def around(last: bool) -> contextlib.AbstractContextManager[object]:
            # At stage 2 each micro-batch is reduced: the optimizer permits nothing else.
            return contextlib.nullcontext() if last or self.stage == 2 else self.optimizer.no_sync()

        ranks = self.topology.dp
        return accumulate(
            self.model, batch, self.workload, dist.get_rank(), ranks, around=around, backward=self.optimizer.backward
        )

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        (store,) = self.optimizer.pg_to_grad_store.values()
        mine = 0 if self.stage == 2 else dist.get_rank()
        held = (store.get_partitioned_gradients_by_param_id(0, id(p))[mine] for p in self.names.values())
        return self._whole(held)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._whole(self.optimizer.working_to_master_param[id(p)] for p in self.names.values())

    def _whole(self, shards: Iterable[Tensor]) -> Mapping[str, Tensor]:
        found = {}
        for (name, parameter), shard in zip(self.names.items(), shards, strict=True):
            parts = [torch.empty_like(shard) for _ in range(self.topology.dp)]
            dist.all_gather(parts, shard.contiguous())
            found[name] = torch.cat(parts)[: parameter.numel()].view(parameter.shape).cpu()
        return found

    def padding(self) -> int:
        """Each parameter is padded to a multiple of the ranks."""
        return sum(-parameter.numel() % self.topology.dp for parameter in self.names.values())


def build(workload: Workload, topology: Topology, stage: int) -> LowLevelZero:
    return LowLevelZero(workload, topology, stage)
