"""Mixed-precision training (Micikevicius et al. 2018, §3), on N ranks with k micro-batches each.

    w   weights of the passes    2 bytes   w = round(M)
    g   their gradients          2 bytes   of S times the loss
    G   Σ over micro-batches     4 bytes   §3.3 accumulates in float32; 2 bytes if they are left in g
    M   master weights           4 bytes   §3.1
    m, v  Adam's moments         8 bytes

A step, where 2 + 2 + 12 bytes a parameter are held (2 + 4 + 12 with G in float32):

    1  for each micro-batch: forward pass with w; backward pass of S · loss; G += g        §3.2
    2  G = 1/N · Σ_n G_n                  one rank's infinity is then every rank's
    3  overflow, if some element of G is not finite: skip 4 to 6
    4  G /= S; clip by ‖G‖                the norm of the true gradient
    5  M = AdamW(M, G)
    6  w = round(M)                       an update below w's last place survives in M
    7  the loss scale's transition        loss_scale.py

Without masters, 5 updates w itself, in numbers of 2 bytes, and an update smaller than half a unit in w's last place is
lost. With autocast, w is M, and each product rounds its own operands: 4 + 4 + 8 bytes.
"""

import contextlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.acceleration.mixed_precision.recipe import Recipe
from impls.common.flat import views
from impls.common.mesh import device, share
from impls.common.optimizer import clip, optimizer, square
from impls.common.weights import TORCH_DTYPES, build_model


class MixedPrecision:
    def __init__(self, workload: Workload, recipe: Recipe) -> None:
        self.workload, self.recipe, self.ranks = workload, recipe, dist.get_world_size()
        self.loss_scale = recipe.loss_scale()
        self.model = build_model(workload, torch.float32 if recipe.autocast else None)
        self.weights = dict(self.model.named_parameters())  # w
        copied = recipe.masters and not recipe.autocast
        self.masters = {n: w.detach().float() if copied else w for n, w in self.weights.items()}  # M
        self.optimizer = optimizer(self.masters.values(), workload)
        self.sums: dict[str, Tensor] = {}  # G, views of one buffer, so that one message is enough
        for name, weight in self.weights.items():
            weight.register_post_accumulate_grad_hook(lambda w, name=name: self._accumulate(name, w))
        self.seen: dict[str, float | Tensor] = {}

    def _accumulate(self, name: str, weight: Tensor) -> None:
        """G += g, as soon as this weight's gradient exists."""
        self.sums[name].add_(weight.grad)
        weight.grad = None

    def _passes(self) -> contextlib.AbstractContextManager[object]:
        narrow = TORCH_DTYPES[self.recipe.precision]
        return torch.autocast(device().type, narrow) if self.recipe.autocast else contextlib.nullcontext()

    def backward(self, batch: Batch) -> Tensor:
        weights = list(self.weights.values())
        kind = torch.float32 if self.recipe.wide else weights[0].dtype
        flat = torch.zeros(sum(w.numel() for w in weights), dtype=kind, device=device())  # [Ψ]
        self.sums = dict(zip(self.weights, views(flat, weights), strict=True))
        total = torch.zeros((), dtype=torch.float64, device=device())
        for micro, part in share(batch, self.workload, dist.get_rank(), self.ranks):  # 1
            with self._passes():
                loss = self.model(*micro) * part * self.ranks
            (loss * self.loss_scale.scale).backward()
            total += loss.detach()
        dist.all_reduce(flat.div_(self.ranks))  # 2
        self.overflow = self.recipe.scaled and not bool(flat.isfinite().all())  # 3
        return total

    def _unscaled(self) -> dict[str, Tensor]:
        return {n: g.to(self.masters[n].dtype) / self.loss_scale.scale for n, g in self.sums.items()}

    def update(self) -> None:
        norm = torch.zeros(())
        if not self.overflow:
            gradients = self._unscaled()  # 4
            self.sums.clear()
            norm = square(gradients.values()).sqrt()  # the host does not wait for it
            clip(list(gradients.values()), self.workload.max_grad_norm)
            for name, master in self.masters.items():
                master.grad = gradients[name]
            self.optimizer.step()  # 5
            self.optimizer.zero_grad()
            self._round()  # 6
        self.sums.clear()
        self.seen = {"scale": self.loss_scale.scale, "skipped": float(self.overflow), "norm": norm}
        self.loss_scale.update(self.overflow)  # 7

    @torch.no_grad()
    def _round(self) -> None:
        """w = round(M)."""
        for name, weight in self.weights.items():
            weight.copy_(self.masters[name])

    def observe(self) -> Mapping[str, float]:
        """The scale that the step's loss had, whether it was skipped, and the norm of its gradient before clipping."""
        return {name: float(value) for name, value in self.seen.items()}

    def gradients(self) -> Mapping[str, Tensor]:
        """The gradient that this step applies: none if it is skipped."""
        skipped = self.overflow
        return {n: (torch.zeros_like(g) if skipped else g).cpu() for n, g in self._unscaled().items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: master.detach().cpu() for name, master in self.masters.items()}


def build(workload: Workload, topology: Topology, **variant: object) -> MixedPrecision:
    recipe = Recipe(**variant)
    recipe.check(workload)
    return MixedPrecision(workload, recipe)
