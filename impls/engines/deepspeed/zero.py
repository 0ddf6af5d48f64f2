"""DeepSpeed's ZeRO, stages 1 to 3."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.step import accumulate
from impls.engines.deepspeed.engine import DataParallel, Engine, asked


def section(workload: Workload, stage: int) -> dict[str, Any]:
    """The configuration's section ``zero_optimization``."""
    if workload.model.stochastic_depth:
        # One bucket for all, and the defaults: from several, ranks with other layers send other sizes, and gloo aborts.
        return {"stage": stage, "reduce_bucket_size": workload.model.parameters}
    # In proportion to the model: the default of 5e8 elements exceeds many models.
    bucket = workload.model.parameters // 64
    return {
        "stage": stage,
        "reduce_bucket_size": bucket,
        "overlap_comm": True,
        "contiguous_gradients": True,
        # Each gradient goes only to its owner. By default buckets are all-reduced, with twice the traffic.
        "use_multi_rank_bucket_allreduce": False,
        # Everything is sharded, and gathered for the forward and again for the backward pass. By default small
        # parameters, and up to 1e9 elements of the others, stay whole after a gather.
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 4 * bucket,
        "stage3_prefetch_bucket_size": bucket,
    }


class Zero(Engine):
    """``options`` are further ones of :func:`section`, ``sections`` further ones of the configuration."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        stage: int,
        options: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> None:
        if stage == 3 and workload.model.stochastic_depth:
            raise Unsupported("ZeRO-3 compares the ranks' modules: Detected a disagreement on list contents")
        super().__init__(workload, topology, section(workload, stage) | dict(options or {}), **sections)
        self.stage = stage

    def padding(self) -> int:
        """The number of elements by which all ranks' partitions together exceed the parameters."""
        if self.stage == 3:
            held = sum(p.ds_tensor.ds_numel * self.topology.dp for p in self.names.values())
        else:
            held = sum(flat.numel() for flat in self.engine.optimizer.bit16_groups_flat)
        return held - self.workload.model.parameters


class DefaultZero(Zero):
    """Everything that the work does not say is at DeepSpeed's default."""

    def settings(self, zero: Mapping[str, Any]) -> dict[str, Any]:
        return asked(super().settings({"stage": zero["stage"]}), self.workload)


class ManualZero(Zero):
    """Gradients are accumulated by hand: each micro-batch has its backward(), after all of them comes one step()."""

    def settings(self, zero: Mapping[str, Any]) -> dict[str, Any]:
        return super().settings(zero) | {"gradient_accumulation_steps": 1}  # its default

    def backward(self, batch: Batch) -> Tensor:
        ranks = self.topology.dp
        return accumulate(self.engine, batch, self.workload, self.rank, ranks, backward=self.engine.backward)


class DefaultDataParallel(DataParallel):
    """The same without ZeRO."""

    def settings(self, zero: Mapping[str, Any]) -> dict[str, Any]:
        return asked(super().settings(zero), self.workload)
