"""Accelerate's ``mixed_precision``: autocast, and in float16 PyTorch's GradScaler behind its optimizer."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradScalerKwargs
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.acceleration.mixed_precision.recipe import Recipe
from impls.common.mesh import device, share
from impls.common.optimizer import optimizer
from impls.common.weights import build_model


class Accelerated:
    def __init__(self, workload: Workload, topology: Topology, recipe: Recipe) -> None:
        self.workload, self.topology, self.recipe = workload, topology, recipe
        scaler = GradScalerKwargs(init_scale=recipe.initial, growth_interval=recipe.interval or 2**30)
        self.accelerator = Accelerator(
            mixed_precision=recipe.precision,
            gradient_accumulation_steps=workload.micro_batches,
            cpu=device().type == "cpu",
            # Without the view, DDP keeps every gradient twice.
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True), scaler],
        )
        if not self.accelerator.native_amp:
            raise Unsupported(
                f"Accelerate takes mixed_precision={recipe.precision!r} on a {device().type} and trains in float32, "
                "without a warning"
            )
        self.inner = build_model(workload, torch.float32)
        self.model, self.optimizer = self.accelerator.prepare(self.inner, optimizer(self.inner.parameters(), workload))
        if topology.dp > 1 and not isinstance(self.model, DistributedDataParallel):
            raise RuntimeError(f"Accelerate made a {type(self.model).__name__}, not a DistributedDataParallel")
        self.seen: dict[str, float] = {}

    def backward(self, batch: Batch) -> Tensor:
        k, total = self.workload.micro_batches, torch.zeros((), dtype=torch.float64, device=device())
        for micro, part in share(batch, self.workload, dist.get_rank(), self.topology.dp):
            with self.accelerator.accumulate(self.model):
                loss = self.model(*micro) * part * self.topology.dp
                self.accelerator.backward(loss * k)  # it divides by k
            total += loss.detach()
        return total

    def _scale(self) -> float:
        return float(self.accelerator.scaler.get_scale()) if self.recipe.scaled else 1.0

    def update(self) -> None:
        used, largest = self._scale(), self.workload.max_grad_norm or torch.inf
        norm = float(self.accelerator.clip_grad_norm_(self.inner.parameters(), largest))
        self.optimizer.step()
        skipped = self.accelerator.optimizer_step_was_skipped
        self.optimizer.zero_grad()
        self.seen = {"scale": used, "skipped": float(skipped), "norm": 0.0 if skipped else norm}

    def observe(self) -> Mapping[str, float]:
        return self.seen

    def gradients(self) -> Mapping[str, Tensor]:
        held = {n: p.grad / self._scale() for n, p in self.inner.named_parameters() if p.grad is not None}
        skipped = self.recipe.scaled and not all(g.isfinite().all() for g in held.values())
        return {name: (torch.zeros_like(g) if skipped else g).cpu() for name, g in held.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.inner.named_parameters()}


def build(workload: Workload, topology: Topology, **variant: object) -> Accelerated:
    recipe = Recipe(**variant)
    recipe.check(workload)
    return Accelerated(workload, topology, recipe)
