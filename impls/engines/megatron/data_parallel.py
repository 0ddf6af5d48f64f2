"""Megatron-Core's DistributedDataParallel around our decoder, with Megatron's own optimizer."""

import contextlib
from collections.abc import Mapping

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.mesh import device, share
from impls.common.precision import without_loss_scale
from impls.common.step import mean_loss
from impls.common.weights import TORCH_DTYPES, build_model
from impls.engines.megatron.optimizer import (
    default_settings,
    gradient,
    megatron_optimizer,
    settings,
    sharded_gradients,
    sharded_parameters,
)
from impls.engines.megatron.start import differences, start

BUCKET = 40_000_000  # elements: Megatron's default


class DataParallel:
    """``shard`` distributes the optimizer's states over the ranks: Megatron's distributed optimizer, in ``instances``
    instances. ``tuned``: for this work; otherwise everything that the work does not say is at Megatron's default."""

    def __init__(
        self, workload: Workload, topology: Topology, shard: bool = False, instances: int = 1, tuned: bool = True
    ) -> None:
        if workload.dtype == "fp64":
            raise Unsupported("Megatron-Core's optimizers take float32, float16 and bfloat16 weights only")
        without_loss_scale(workload, "Megatron-Core")
        start(topology, instances=instances)
        self.workload, self.topology = workload, topology
        self.rank = parallel_state.get_data_parallel_rank()
        model = build_model(workload)
        self.names = dict(model.named_parameters())
        config = TransformerConfig(
            num_layers=workload.model.num_hidden_layers,
            hidden_size=workload.model.hidden_size,
            num_attention_heads=workload.model.num_attention_heads,
            kv_channels=workload.model.head_dim,
            params_dtype=TORCH_DTYPES[workload.dtype],
            bf16=workload.dtype == "bf16",
        )
        tuning = DistributedDataParallelConfig(
            grad_reduce_in_fp32=False,  # gradients travel in the weights' own precision, as the traffic law assumes
            overlap_grad_reduce=not workload.model.stochastic_depth,  # it asserts that every gradient exists
            overlap_param_gather=shard,
            use_distributed_optimizer=shard,
            num_distributed_optimizer_instances=instances,
            # Several buckets even for a small model: a single one would overlap nothing. They are views, not copies.
            bucket_size=min(BUCKET, workload.model.parameters // 4),
        )
        communication = tuning if tuned else DistributedDataParallelConfig(use_distributed_optimizer=shard)
        chosen = settings(workload, config, shard) if tuned else default_settings(workload, config, shard)
        self.configuration = differences(config, communication, chosen)
        self.model = DistributedDataParallel(config, communication, model)
        self.optimizer = megatron_optimizer(chosen, [self.model], overrides={} if tuned else None)

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = list(share(batch, self.workload, self.rank, self.topology.dp))
        total = torch.zeros((), device=device())
        for index, (micro, part) in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.model.no_sync():
                loss = mean_loss(self.model, micro, self.workload) * part * self.topology.dp
                loss.backward()
            total += loss.detach()
        self.model.finish_grad_sync()
        return total

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.zero_grad_buffer()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: gradient(parameter).cpu() for name, parameter in self.names.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        masters = {name: getattr(parameter, "main_param", parameter) for name, parameter in self.names.items()}
        return {name: master.detach().cpu() for name, master in masters.items()}

    def padding(self) -> int:
        """The number of elements by which Megatron's flat buffers exceed the parameters."""
        return sum(buffer.numel for buffer in self.model.buffers) - self.workload.model.parameters


class DistributedOptimizer(DataParallel):
    """ZeRO stage 1."""

    def __init__(self, workload: Workload, topology: Topology, instances: int = 1, tuned: bool = True) -> None:
        super().__init__(workload, topology, shard=True, instances=instances, tuned=tuned)

    def gradients(self) -> Mapping[str, Tensor]:
        return sharded_gradients(self.optimizer, self.names)

    def parameters(self) -> Mapping[str, Tensor]:
        return sharded_parameters(self.optimizer, self.names)
