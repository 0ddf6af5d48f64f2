"""PEFT's LoraConfig on our decoder; DistributedDataParallel averages its gradients, as in Transformers' Trainer."""

import peft.optimizers
import torch
from torch import nn

from harness.spec import Topology, Workload
from impls.common.experts import without_experts
from impls.common.optimizer import optimizer
from impls.common.weights import build_model
from impls.engines.peft import Mergeable, base, lora, trained
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


class Peft(Mergeable):
    def __init__(self, workload: Workload, topology: Topology, ratio: float = 1.0, **variant: float) -> None:
        without_experts(workload, "adapters are set up here with")
        self.peft_model = model = lora(build_model(workload), settings(**variant), initial(workload, **variant))
        told, steps = f"LoraConfig({settings(**variant)})", stepper(model, workload, ratio)
        super().__init__(workload, topology, model, trained(model), base(model), told, steps)


def build(workload: Workload, topology: Topology, **variant: float) -> Peft:
    return Peft(workload, topology, **variant)
