"""The dense model with the loss scale, on one process; in float64 a step is skipped where float16 would overflow.

It computes the gradient of each rank's micro-batches one after another, since that is what overflows: a scaled gradient
of a micro-batch beyond 65504, float16's largest number. With autocast, only those of the products' weights are float16.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.acceleration.mixed_precision.recipe import Recipe
from impls.common import weights
from impls.common.mesh import cut, device, placed, token_share
from impls.common.optimizer import clip, optimizer, square
from impls.common.plain import Plain

LARGEST = torch.finfo(torch.float16).max


def options(workload: Workload, topology: Topology, **variant: Any) -> dict[str, Any]:
    return {"ranks": topology.dp, "micro_batches": workload.micro_batches, **variant}


def replays(masters: bool = True, **options: Any) -> bool:
    """Without masters, updates are rounded to 2 bytes."""
    return masters


def initial(workload: Workload, precision: str, autocast: bool = False, **options: Any) -> Iterator[tuple[str, Tensor]]:
    """Masters start from narrow weights: below 2⁻¹⁴, float16 knows only multiples of 2⁻²⁴."""
    narrow = torch.float32 if autocast else weights.TORCH_DTYPES[precision]
    for name, tensor in weights.initial(workload):
        yield name, tensor.to(narrow).float()


class Scaled(Plain):
    """``micro_batches`` and ``ranks`` are the case's; a member of the ensemble may split micro-batches more finely."""

    def __init__(
        self, workload: Workload, permute: bool, math: bool, ranks: int, micro_batches: int, recipe: Recipe
    ) -> None:
        finer = workload.with_(micro_batches=max(1, workload.micro_batches // micro_batches))
        narrow = workload.element_size < 4
        super().__init__(finer.with_(dtype="fp32") if recipe.autocast and narrow else finer, permute, math)
        self.ranks, self.pieces, self.recipe, self.loss_scale = ranks, micro_batches, recipe, recipe.loss_scale()
        self.cast = weights.TORCH_DTYPES[workload.dtype] if recipe.autocast and narrow else None
        self.exact = not narrow
        self.weights = dict(self.model.named_parameters())
        products = {f"{name}.weight" for name, module in self.model.named_modules() if isinstance(module, nn.Linear)}
        self.narrow_gradients = products if recipe.autocast else self.weights.keys()
        with torch.no_grad():
            for name, tensor in initial(workload, recipe.precision, recipe.autocast):
                self.weights[name].copy_(tensor)
        if recipe.masters:
            self.masters = dict(zip(self.names, self.optimizer.masters, strict=True))
            self.steps = self.optimizer.optimizer
        else:
            self.masters, self.steps = self.weights, optimizer(self.model.parameters(), workload)
        self.seen: dict[str, float] = {}

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        self.sums: dict[str, Tensor] = {}
        self.overflow = False
        for rows in zip(*(t.chunk(self.ranks) for t in batch), strict=True):
            mine: dict[str, Tensor] = {}
            for piece in zip(*(t.chunk(self.pieces) for t in rows), strict=True):
                total += self._pass(Batch(*piece), batch)
                _add(mine, {n: self._taken(n, w) for n, w in self.weights.items()})
            if not self.recipe.wide:
                self._watch(mine)
            _add(self.sums, {name: g / self.ranks for name, g in mine.items()})
        return total

    def _pass(self, piece: Batch, batch: Batch) -> float:
        """Adds the scaled gradient of one rank's micro-batch, a part of ``batch``, to the weights' own."""
        total = 0.0
        if self.permute:
            piece = Batch(piece.inputs.flip(0), piece.labels.flip(0))
        casting = torch.autocast(device().type, self.cast) if self.cast else contextlib.nullcontext()
        for micro in cut(piece, self.workload, 0, 1):
            part = token_share(micro, batch)
            with self.attention(), casting:
                loss = self.model(*placed(micro)) * part
            with self.attention():
                (loss * self.ranks * self.loss_scale.scale).backward()
            total += float(loss.detach())
        return total

    def _taken(self, name: str, weight: nn.Parameter) -> Tensor:
        """The gradient of this micro-batch, in the precision in which it is accumulated."""
        assert weight.grad is not None
        g, weight.grad = weight.grad, None
        if name in self.narrow_gradients:
            self._watch({name: g})
        return g.to(torch.promote_types(g.dtype, torch.float32)) if self.recipe.wide else g

    def _watch(self, gradients: Mapping[str, Tensor]) -> None:
        limit = LARGEST if self.exact else torch.inf  # narrow gradients overflow by themselves
        for g in gradients.values() if self.recipe.scaled else ():
            self.overflow |= not (g.isfinite() & (g.abs() <= limit)).all()

    def _unscaled(self) -> dict[str, Tensor]:
        return {name: g.to(self.masters[name].dtype) / self.loss_scale.scale for name, g in self.sums.items()}

    def update(self) -> None:
        norm = 0.0
        if not self.overflow:
            gradients = self._unscaled()
            norm = float(square(gradients.values()).sqrt())
            clip(list(gradients.values()), self.workload.max_grad_norm)
            for name, master in self.masters.items():
                master.grad = gradients[name]
            self.steps.step()
            self.steps.zero_grad()
            self._round()
        self.seen = {"scale": self.loss_scale.scale, "skipped": float(self.overflow), "norm": norm}
        self.loss_scale.update(self.overflow)

    @torch.no_grad()
    def _round(self) -> None:
        if not self.recipe.masters and self.exact:  # in float64: weights and moments are rounded, as narrow ones are
            states = [s for state in self.steps.state.values() for s in state.values() if s.dim()]
            for tensor in (*self.weights.values(), *states):
                tensor.copy_(tensor.to(weights.TORCH_DTYPES[self.recipe.precision]))
        for name, weight in self.weights.items():
            weight.copy_(self.masters[name])

    def observe(self) -> Mapping[str, float]:
        return self.seen

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: (torch.zeros_like(g) if self.overflow else g).cpu() for n, g in self._unscaled().items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: master.detach().cpu() for name, master in self.masters.items()}


def _add(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, g in more.items():
        sums[name] = sums[name] + g if name in sums else g


def build(
    workload: Workload,
    topology: Topology,
    permute: bool = False,
    math: bool = False,
    ranks: int = 1,
    micro_batches: int = 1,
    **variant: Any,
) -> Scaled:
    return Scaled(workload, permute, math, ranks, micro_batches, Recipe(**variant))
