"""PEFT's AdaLoraModel on our decoder. Its regulariser is added to the loss of each micro-batch, so that its parts of a
step add up to one; gradients are averaged by DistributedDataParallel.

PEFT divides by r + 1e-5 in place of r, which ``lora_alpha`` makes up for here.

AdaLoraModel is what PeftModelForCausalLM and the models of other task types call. Without a task type the model is a
plain PeftModel, ``typed=False``.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from peft import AdaLoraConfig, get_peft_model
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device, share
from impls.common.optimizer import clip
from impls.common.weights import build_model
from impls.engines.adapted import DataParallel, fill
from impls.engines.peft import base, canonical
from impls.finetuning.adalora.budget import Allotted
from impls.finetuning.adalora.shapes import initial
from impls.finetuning.lora.shapes import TARGETS

ADDED = 1e-5


class WithLoss(nn.Module):
    """The decoder with the outputs of a Transformers model, to whose loss PEFT adds its regulariser."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.decoder, self.task = build_model(workload), torch.zeros(())

    def forward(self, tokens: Tensor, labels: Tensor) -> SimpleNamespace:
        loss = self.decoder(tokens, labels)
        self.task = loss.detach()
        return SimpleNamespace(loss=loss.clone())  # PEFT adds to it in place


class Loss(nn.Module):
    """A loss in place of the outputs: DistributedDataParallel looks for tensors in what a module returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> Tensor:
        return self.model(*batch).loss


class PeftAdaLora(DataParallel):
    def __init__(self, workload: Workload, topology: Topology, allotted: Allotted, typed: bool = True) -> None:
        without_experts(workload, "adapters are set up here with")
        rank = allotted.rank
        settings: dict[str, Any] = {
            "init_r": rank,
            "target_r": allotted.target,
            "lora_alpha": allotted.alpha * (1 + ADDED / rank),
            "tinit": allotted.warmup,
            "tfinal": allotted.final,
            "deltaT": allotted.every,
            "orth_reg_weight": allotted.gamma,
            "total_step": workload.steps,
            "target_modules": list(TARGETS),
        }
        self.t, self.inner = 0, WithLoss(workload)
        config = AdaLoraConfig(**settings)
        whole = (
            AdaLoraModel(self.inner, {"default": config}, "default") if typed else get_peft_model(self.inner, config)
        )
        self.adalora: AdaLoraModel = whole if typed else whole.base_model
        named = {canonical(name): p for name, p in self.inner.decoder.named_parameters()}
        weights = {name: p for name, p in named.items() if p.requires_grad}
        for parameter in weights.values():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        # On a base in bfloat16 PEFT trains the number of ranks too.
        fill({name: p for name, p in weights.items() if not name.endswith("ranknum")}, initial(workload, rank))
        told, model = f"AdaLoraConfig({settings})", Loss(whole)
        super().__init__(workload, topology, model, weights, base(self.inner.decoder), told)

    def backward(self, batch: Batch) -> Tensor:
        """The loss of the task is returned, without the regulariser."""
        micro_batches = list(share(batch, self.workload, dist.get_rank(), self.ranks))
        total = torch.zeros((), dtype=torch.float64, device=device())
        for index, (micro, part) in enumerate(micro_batches):
            with self.around(index == len(micro_batches) - 1):
                (self.model(*micro) * part * self.ranks).backward()
            total += self.inner.task * part * self.ranks
        return total

    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.t += 1
        self.optimizer.step()
        self.adalora.update_and_allocate(self.t)
        self.optimizer.zero_grad()

    def observe(self) -> Mapping[str, float]:
        values = (p for name, p in self.weights.items() if name.endswith("lora_E"))
        return {"rank": float(sum(int(each.count_nonzero()) for each in values))}


def build(workload: Workload, topology: Topology, **variant: Any) -> PeftAdaLora:
    return PeftAdaLora(workload, topology, Allotted(**variant))


def build_untyped(workload: Workload, topology: Topology, **variant: Any) -> PeftAdaLora:
    """Without a task type, which AdaLoraConfig does not require."""
    return PeftAdaLora(workload, topology, Allotted(**variant), typed=False)
