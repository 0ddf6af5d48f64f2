"""PyTorch's automatic mixed precision: ``torch.autocast`` with ``torch.amp.GradScaler`` under DistributedDataParallel,
and a model that is bfloat16 throughout, which needs neither."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.acceleration.mixed_precision.recipe import Recipe
from impls.common.mesh import device, share
from impls.common.optimizer import optimizer
from impls.common.weights import TORCH_DTYPES
from impls.engines.torch.ddp import DDP


class Amp(DDP):
    def __init__(self, workload: Workload, topology: Topology, recipe: Recipe) -> None:
        super().__init__(workload.with_(dtype="fp32") if recipe.autocast else workload, topology)
        self.recipe, self.inner = recipe, self.model.module
        del self.optimizer  # without its masters: autocast's weights are float32
        self.steps = optimizer(self.inner.parameters(), workload)
        self.scaler = GradScaler(
            device().type, recipe.initial, growth_interval=recipe.interval or 2**30, enabled=recipe.scaled
        )
        self.configuration = f"GradScaler({recipe.initial:g}, growth_interval={recipe.interval})" * recipe.scaled
        self.seen: dict[str, float] = {}

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = list(share(batch, self.workload, self.rank, self.topology.dp))
        total = torch.zeros((), dtype=torch.float64, device=device())
        for index, (micro, part) in enumerate(micro_batches):
            with self.around(index == len(micro_batches) - 1):
                with torch.autocast(device().type, TORCH_DTYPES[self.recipe.precision], enabled=self.recipe.autocast):
                    loss = self.model(*micro) * part * self.topology.dp
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def update(self) -> None:
        used = self.scaler.get_scale()
        self.scaler.unscale_(self.steps)
        norm = float(clip_grad_norm_(self.inner.parameters(), self.workload.max_grad_norm or torch.inf))
        self.scaler.step(self.steps)
        self.scaler.update()
        skipped = self.scaler.get_scale() < used
        self.steps.zero_grad()
        self.seen = {"scale": used, "skipped": float(skipped), "norm": 0.0 if skipped else norm}

    def observe(self) -> Mapping[str, float]:
        return self.seen

    def gradients(self) -> Mapping[str, Tensor]:
        held = {n: p.grad / self.scaler.get_scale() for n, p in self.inner.named_parameters() if p.grad is not None}
        skipped = self.recipe.scaled and not all(g.isfinite().all() for g in held.values())
        return {name: (torch.zeros_like(g) if skipped else g).cpu() for name, g in held.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.inner.named_parameters()}


def build(workload: Workload, topology: Topology, **variant: object) -> Amp:
    recipe = Recipe(**variant)
    recipe.check(workload)
    if recipe.scaled and not recipe.autocast:
        raise Unsupported("PyTorch's GradScaler refuses float16 weights: Attempting to unscale FP16 gradients")
    return Amp(workload, topology, recipe)
