"""FSDP-QLoRA: PEFT on bitsandbytes' Linear4bit under PyTorch's FSDP2. FSDP2 divides the packed codes, the adapters and
everything else that is a parameter; the scales of the codes are no parameters, and are whole on each rank."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import mesh
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.finetuning.qlora.on_peft import adapted, configuration, layers, trained, whole_rows


class PeftFsdp2:
    def __init__(self, workload: Workload, topology: Topology, **variant: Any) -> None:
        self.workload, self.topology = workload, topology
        self.model = adapted(workload, **variant)
        self.configuration = f"fully_shard(layer), fully_shard(model); {configuration(**variant)}"
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
        """This rank's codes, and all scales."""
        held: dict[str, Tensor] = {}
        for name, layer in layers(self.model).items():
            assert isinstance(layer.weight, DTensor)
            held |= {f"{name}.codes": layer.weight.to_local(), f"{name}.scales": layer.quant_state.absmax}
        return held


def whole(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor().cpu()


def build(workload: Workload, topology: Topology, sharded: bool, **variant: Any) -> PeftFsdp2:
    whole_rows(workload)
    return PeftFsdp2(workload, topology, **variant)
