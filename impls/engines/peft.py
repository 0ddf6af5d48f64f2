"""PEFT's adapters on a model with canonical names, and how they are trained: under DistributedDataParallel or FSDP2.

PEFT keeps adapters in float32 above a base in bfloat16 (``autocast_adapter_dtype``, its default)."""

from collections.abc import Iterable, Mapping
from typing import Any

import peft
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import mesh
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.engines.adapted import DataParallel, fill

PREFIX = "base_model.model."


def lora(model: nn.Module, settings: Mapping[str, Any], start: Iterable[tuple[str, Tensor]]) -> peft.PeftModel:
    """The model with LoraConfig's adapters, which have the given start."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    fill(trained(wrapped), start)
    return wrapped


def canonical(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".default.", ".").removesuffix(".default").replace(".base_layer.", ".")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {canonical(name): p for name, p in model.named_parameters() if p.requires_grad}


def base(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapted matrices."""
    return {canonical(name): p for name, p in model.named_parameters() if ".base_layer." in name}


class Mergeable(DataParallel):
    """Adapters that PEFT folds into the base, ``peft_model``."""

    peft_model: peft.PeftModel

    def merged(self) -> Mapping[str, Tensor]:
        self.peft_model.merge_adapter()
        return self.frozen()

    def unmerge(self) -> None:
        self.peft_model.unmerge_adapter()


class FullyShard:
    """Adapters under PyTorch's FSDP2: frozen weights and adapters are divided over the data-parallel ranks, each in its
    own precision."""

    def __init__(self, workload: Workload, topology: Topology, model: peft.PeftModel, configuration: str) -> None:
        self.workload, self.topology, self.model = workload, topology, model
        self.configuration = f"fully_shard(layer), fully_shard(model); {configuration}"
        shards = mesh(topology)["dp"]
        for layer in model.base_model.model.model.layers:
            fully_shard(layer, mesh=shards)
        fully_shard(model, mesh=shards)
        # DTensor has a fused AdamW, but no fused SGD.
        self.optimizer = optimizer(trained(model).values(), workload, fused=workload.optimizer == "adamw")

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.topology.dp)

    def update(self) -> None:
        if self.workload.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained(self.model).values(), self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: whole(p.grad) for name, p in trained(self.model).items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: whole(p.detach()) for name, p in trained(self.model).items()}

    def frozen(self) -> Mapping[str, Tensor]:
        return {name: whole(p.detach()) for name, p in base(self.model).items()}


def whole(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor().cpu()
