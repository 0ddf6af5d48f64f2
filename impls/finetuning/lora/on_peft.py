"""PEFT's LoraConfig on our decoder; DistributedDataParallel averages its gradients, as in Transformers' Trainer."""

import contextlib
from collections.abc import Mapping

import peft.optimizers
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import clip, optimizer
from impls.common.step import accumulate
from impls.common.weights import build_model
from impls.engines.peft import base, lora, trained
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.settings import settings


def stepper(model: nn.Module, workload: Workload, ratio: float) -> torch.optim.Optimizer:
    """The workload's optimizer, for LoRA+ by PEFT's own function."""
    if ratio == 1.0:
        return optimizer(trained(model).values(), workload)
    more: dict[str, object] = {"betas": workload.betas, "eps": workload.eps}
    sgd = workload.optimizer == "sgd"
    made: torch.optim.Optimizer = peft.optimizers.create_loraplus_optimizer(
        model=model,
        optimizer_cls=torch.optim.SGD if sgd else torch.optim.AdamW,
        lr=workload.lr,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=workload.weight_decay,
        **({} if sgd else more),
    )
    return made


class Peft:
    def __init__(self, workload: Workload, topology: Topology, ratio: float = 1.0, **variant: float) -> None:
        self.workload, self.ranks = workload, topology.dp
        without_experts(workload, "adapters are set up here with")
        self.peft = lora(build_model(workload), settings(**variant), initial(workload, **variant))
        self.configuration = f"LoraConfig({settings(**variant)})"
        self.weights = trained(self.peft)
        self.optimizer = stepper(self.peft, workload, ratio)
        self.model: nn.Module = self.peft
        if self.ranks > 1:
            devices = [device()] if device().type == "cuda" else None
            self.model = DistributedDataParallel(self.peft, device_ids=devices, gradient_as_bucket_view=True)

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.ranks, around=self.around)

    def around(self, last: bool) -> contextlib.AbstractContextManager[object]:
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad.cpu() for name, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.weights.items()}

    def frozen(self) -> Mapping[str, Tensor]:
        return base(self.peft)

    def merged(self) -> Mapping[str, Tensor]:
        self.peft.merge_adapter()
        return base(self.peft)

    def unmerge(self) -> None:
        self.peft.unmerge_adapter()


def build(workload: Workload, topology: Topology, **variant: float) -> Peft:
    return Peft(workload, topology, **variant)
