"""DeepSpeed without ZeRO: its sections ``fp16``, ``bf16`` and ``torch_autocast``."""

from collections.abc import Mapping
from math import log2
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from harness.spec import Topology, Unsupported, Workload
from impls.acceleration.mixed_precision.recipe import Recipe
from impls.common.weights import TORCH_DTYPES
from impls.engines.deepspeed.engine import Engine


def section(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's ``fp16``; a ``loss_scale`` of 0 is a dynamic one."""
    return {
        "enabled": True,
        "loss_scale": 0 if recipe.interval else recipe.initial,
        "initial_scale_power": int(log2(recipe.initial)),
        "loss_scale_window": recipe.interval or 1000,
        "hysteresis": recipe.hysteresis,
    }


class MixedPrecision(Engine):
    def __init__(self, workload: Workload, topology: Topology, recipe: Recipe) -> None:
        self.recipe = recipe
        sections: dict[str, Any] = {"fp16": section(recipe)} if recipe.scaled else {}
        if recipe.autocast:
            narrow = str(TORCH_DTYPES[recipe.precision]).removeprefix("torch.")
            sections = {"torch_autocast": {"enabled": True, "dtype": narrow}}
            workload = workload.with_(dtype="fp32")
        super().__init__(workload, topology, {"stage": 0}, **sections)
        self.seen: dict[str, float] = {}

    def _scale(self) -> float:
        return float(self.engine.optimizer.cur_scale) if self.recipe.scaled else 1.0

    def update(self) -> None:
        used = self._scale()
        super().update()
        skipped = self.recipe.scaled and self.engine.optimizer.overflow
        self.seen = {"scale": used, "skipped": float(skipped)}
        norm = self.engine.get_global_grad_norm()
        # Without ZeRO it takes an extra step in bf16, so that the later norms are those of other weights.
        if norm is not None and (self.recipe.scaled or self.recipe.autocast):
            self.seen["norm"] = 0.0 if skipped else float(norm)

    def observe(self) -> Mapping[str, float]:
        return self.seen

    def gradients(self) -> Mapping[str, Tensor]:
        held = {name: g.float() / self._scale() for name, g in super().gradients().items()}
        skipped = self.recipe.scaled and not all(g.isfinite().all() for g in held.values())
        return {name: torch.zeros_like(g) if skipped else g for name, g in held.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        masters = self.engine.optimizer.param_groups[0]["params"]  # float32 copies of narrow weights
        return {name: master.detach().cpu() for name, master in zip(self.names, masters, strict=True)}


def build(workload: Workload, topology: Topology, **variant: object) -> MixedPrecision:
    recipe = Recipe(**variant)
    recipe.check(workload)
    if recipe.scaled and recipe.autocast:
        raise Unsupported("DeepSpeed's torch_autocast has no settings for its GradScaler, which starts at 65536")
    if recipe.scaled and not get_accelerator().is_fp16_supported():
        raise Unsupported("DeepSpeed: Type fp16 is not supported on your device.")
    return MixedPrecision(workload, topology, recipe)
