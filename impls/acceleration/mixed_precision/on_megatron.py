"""Megatron-Core's Float16OptimizerWithFloat16Params with its DynamicGradScaler, under its DistributedDataParallel."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.acceleration.mixed_precision.recipe import Recipe
from impls.common.mesh import device, share
from impls.common.weights import TORCH_DTYPES, build_model
from impls.engines.megatron.optimizer import gradient, megatron_optimizer, settings
from impls.engines.megatron.start import differences, start


class MixedPrecision:
    def __init__(self, workload: Workload, topology: Topology, recipe: Recipe) -> None:
        start(topology)
        self.workload, self.topology, self.recipe = workload, topology, recipe
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
            fp16=workload.dtype == "fp16",
        )
        communication = DistributedDataParallelConfig(grad_reduce_in_fp32=recipe.wide)
        chosen = replace(settings(workload, config), fp16=config.fp16)
        if recipe.interval:
            chosen.initial_loss_scale, chosen.loss_scale_window = recipe.initial, recipe.interval
            chosen.hysteresis = recipe.hysteresis
        elif recipe.scaled:
            chosen.loss_scale = recipe.initial
        self.configuration = differences(config, communication, chosen)
        self.model = DistributedDataParallel(config, communication, model)
        self.optimizer = megatron_optimizer(chosen, [self.model], overrides={})
        self.seen: dict[str, float] = {}

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = list(share(batch, self.workload, self.rank, self.topology.dp))
        total = torch.zeros((), dtype=torch.float64, device=device())
        for index, (micro, part) in enumerate(micro_batches):
            with contextlib.nullcontext() if index == len(micro_batches) - 1 else self.model.no_sync():
                loss = self.model(*micro) * part * self.topology.dp
                self.optimizer.scale_loss(loss).backward()
            total += loss.detach()
        self.model.finish_grad_sync()
        return total

    def update(self) -> None:
        used = float(self.optimizer.get_loss_scale())
        stepped, norm, _ = self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.zero_grad_buffer()
        self.seen = {"scale": used, "skipped": float(not stepped)}
        if self.workload.max_grad_norm:  # it computes the norm only to clip
            self.seen["norm"] = float(norm or 0.0)

    def observe(self) -> Mapping[str, float]:
        return self.seen

    def gradients(self) -> Mapping[str, Tensor]:
        scale = self.optimizer.get_loss_scale()
        held = {name: gradient(parameter).float() / scale for name, parameter in self.names.items()}
        skipped = self.recipe.scaled and not all(g.isfinite().all() for g in held.values())
        return {name: (torch.zeros_like(g) if skipped else g).cpu() for name, g in held.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: parameter.main_param.detach().cpu() for name, parameter in self.names.items()}

    def padding(self) -> int:
        """The number of elements by which Megatron's flat buffers exceed the parameters."""
        return sum(buffer.numel for buffer in self.model.buffers) - self.workload.model.parameters


def build(workload: Workload, topology: Topology, **variant: object) -> MixedPrecision:
    recipe = Recipe(**variant)
    recipe.check(workload)
    return MixedPrecision(workload, topology, recipe)
