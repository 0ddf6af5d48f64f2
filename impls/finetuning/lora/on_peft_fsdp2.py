"""PEFT's adapters under PyTorch's FSDP2: frozen weights and adapters are divided over the data-parallel ranks, each in
its own precision."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import mesh
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.engines.peft import base, lora, trained
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.settings import settings


class PeftFsdp2:
    def __init__(self, workload: Workload, topology: Topology, **variant: float) -> None:
        self.workload, self.topology = workload, topology
        without_experts(workload, "adapters are set up here with")
        self.model = lora(build_model(workload), settings(**variant), initial(workload, **variant))
        self.configuration = f"fully_shard(layer), fully_shard(model); LoraConfig({settings(**variant)})"
        shards = mesh(topology)["dp"]
        for layer in self.model.base_model.model.model.layers:
            fully_shard(layer, mesh=shards)
        fully_shard(self.model, mesh=shards)
        # DTensor has a fused AdamW, but no fused SGD.
        self.optimizer = optimizer(trained(self.model).values(), workload, fused=workload.optimizer == "adamw")

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


def build(workload: Workload, topology: Topology, **variant: float) -> PeftFsdp2:
    return PeftFsdp2(workload, topology, **variant)
