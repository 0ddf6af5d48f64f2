"""PEFT's AdaLoraModel on our decoder. Its regulariser is added to the loss of each micro-batch, so that its parts of a
step add up to one; gradients are averaged by DistributedDataParallel.

PEFT divides by r + 1e-5 in place of r, which ``lora_alpha`` makes up for here.
"""

import contextlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Workload
from impls.common.experts import without_experts
from impls.common.mesh import device, share
from impls.common.optimizer import clip, optimizer
from impls.common.weights import build_model
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


class PeftAdaLora:
    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        rank: int,
        target: int,
        alpha: float,
        warmup: int,
        final: int,
        every: int,
        gamma: float,
        squared: bool = True,
    ) -> None:
        without_experts(workload, "adapters are set up here with")
        self.workload, self.ranks, self.t = workload, topology.dp, 0
        settings: dict[str, Any] = {
            "init_r": rank,
            "target_r": target,
            "lora_alpha": alpha * (1 + ADDED / rank),
            "tinit": warmup,
            "tfinal": final,
            "deltaT": every,
            "orth_reg_weight": gamma,
            "total_step": workload.steps,
            "target_modules": list(TARGETS),
        }
        self.configuration = f"AdaLoraConfig({settings})"
        self.inner = WithLoss(workload)
        self.adalora = AdaLoraModel(self.inner, {"default": AdaLoraConfig(**settings)}, "default")
        wide = torch.promote_types(next(self.inner.parameters()).dtype, torch.float32)
        self.weights = {}
        for name, parameter in self.inner.decoder.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(wide)
                self.weights[name.removesuffix(".default")] = parameter
        with torch.no_grad():
            for name, tensor in initial(workload, rank):
                self.weights[name].copy_(tensor)
        self.optimizer = optimizer(self.weights.values(), workload)
        self.model: nn.Module = Loss(self.adalora)
        if self.ranks > 1:
            devices = [device()] if device().type == "cuda" else None
            self.model = DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True)

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = list(share(batch, self.workload, dist.get_rank(), self.ranks))
        total = torch.zeros((), dtype=torch.float64, device=device())
        for index, (micro, part) in enumerate(micro_batches):
            with self.silent(index < len(micro_batches) - 1):
                (self.model(*micro) * part * self.ranks).backward()
            total += self.inner.task * part * self.ranks
        return total

    def silent(self, silent: bool) -> contextlib.AbstractContextManager[object]:
        ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if silent and ddp else contextlib.nullcontext()

    def update(self) -> None:
        clip([p.grad for p in self.weights.values()], self.workload.max_grad_norm)
        self.t += 1
        self.optimizer.step()
        self.adalora.update_and_allocate(self.t)
        self.optimizer.zero_grad()

    def observe(self) -> Mapping[str, float]:
        values = (p for name, p in self.weights.items() if name.endswith("lora_E"))
        return {"rank": float(sum(int(each.count_nonzero()) for each in values))}

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad.cpu() for name, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.weights.items()}

    def frozen(self) -> Mapping[str, Tensor]:
        named = self.inner.decoder.named_parameters()
        return {name.replace(".base_layer", ""): p for name, p in named if ".base_layer." in name}


def build(workload: Workload, topology: Topology, **variant: Any) -> PeftAdaLora:
    return PeftAdaLora(workload, topology, **variant)
