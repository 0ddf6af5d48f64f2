"""Megatron-Core's optimizer for a workload, and the memory layout of its distributed optimizer (ZeRO-1)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from harness.spec import Unsupported, Workload


def settings(workload: Workload, config: TransformerConfig, shard: bool = False) -> OptimizerConfig:
    """``shard`` distributes the states over data-parallel ranks: the distributed optimizer."""
    if shard and workload.optimizer != "adamw":
        raise Unsupported(f"Megatron-Core's distributed optimizer takes Adam only, not {workload.optimizer}")
    return OptimizerConfig(
        optimizer="adam" if workload.optimizer == "adamw" else "sgd",
        lr=workload.lr,
        weight_decay=workload.weight_decay,
        adam_beta1=workload.betas[0],
        adam_beta2=workload.betas[1],
        adam_eps=workload.eps,
        sgd_momentum=0.0,  # its default is 0.9
        clip_grad=workload.max_grad_norm,  # its default is 1.0
        bf16=config.bf16,
        params_dtype=config.params_dtype,
        use_distributed_optimizer=shard,
        overlap_param_gather=shard,
    )


def default_settings(workload: Workload, config: TransformerConfig, shard: bool = False) -> OptimizerConfig:
    """The same, where everything that the workload does not say is at Megatron's default."""
    chosen, default = settings(workload, config, shard), OptimizerConfig()
    clip = {} if workload.max_grad_norm else {"clip_grad": default.clip_grad}
    return replace(chosen, sgd_momentum=default.sgd_momentum, overlap_param_gather=default.overlap_param_gather, **clip)


def megatron_optimizer(
    chosen: OptimizerConfig, parts: Sequence[DistributedDataParallel], overrides: Mapping[Any, Any] | None = None
) -> Any:
    """``overrides`` of settings by parameter. Megatron's own, if they are None, put norms and biases into a group that
    is not decayed; a workload decays all parameters."""
    own = {} if overrides is None else {"config_overrides": dict(overrides)}
    return get_megatron_optimizer(chosen, list(parts), use_gloo_process_groups=False, **own)


def shards(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor, slice]]:
    """Each parameter of which this rank of a distributed optimizer owns a part: the parameter, its part's master, and
    the part's position among the parameter's elements."""
    for each in optimizer.chained_optimizers:
        parameters = chain(*each.model_float16_groups, *each.model_fp32_groups)
        masters = chain(*each.shard_fp32_from_float16_groups, *each.shard_fp32_groups)
        for parameter, master in zip(parameters, masters, strict=True):
            place = each._get_model_param_range_map(parameter)["param"]
            yield parameter, master.detach(), slice(place.start, place.end)


def gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient in Megatron's own storage, a view of its flat buffer."""
    found: Tensor = parameter.main_grad  # type: ignore[attr-defined]
    return found


def sharded_gradients(optimizer: Any, names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Whole gradients, on the CPU: after the reduce-scatter only this rank's own part of the buffer holds the mean."""
    return _assembled(((p, place, gradient(p).flatten()[place]) for p, _, place in shards(optimizer)), names)


def sharded_parameters(optimizer: Any, names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The whole masters, on the CPU."""
    return _assembled(((p, place, master) for p, master, place in shards(optimizer)), names)


def _assembled(
    parts: Iterator[tuple[nn.Parameter, slice, Tensor]], names: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Whole float32 tensors from the parts of every rank of an instance (for experts, of a group with copies of them);
    each element is owned by one of them."""
    instance = parallel_state.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=True)
    copies = parallel_state.get_expert_data_parallel_group()
    whole = {p: torch.zeros(p.numel(), device=p.device) for p in names.values()}
    for parameter, place, part in parts:
        whole[parameter][place] = part
    for parameter, tensor in whole.items():
        dist.all_reduce(tensor, group=instance if getattr(parameter, "allreduce", True) else copies)
    return {name: whole[parameter].view_as(parameter).cpu() for name, parameter in names.items()}
