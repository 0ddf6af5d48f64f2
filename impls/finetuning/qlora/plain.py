"""The dense model with adapters whose frozen matrices are rounded to four bits and back, one weight after another (by
nf4's problem): the definition of QLoRA without its storage."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from harness.spec import Topology, Workload
from impls.common import weights
from impls.finetuning.lora import plain as lora
from impls.finetuning.lora.shapes import targets
from impls.finetuning.nf4.problem import plain as stored


def options(workload: Workload, topology: Topology, sharded: bool = False, **variant: Any) -> dict[str, Any]:
    return variant


def initial(workload: Workload, normal: bool, double: bool, **options: Any) -> Iterator[tuple[str, Tensor]]:
    return lora.initial(workload, **options)


@lru_cache(maxsize=1)
def rounded(start: Workload, normal: bool, double: bool) -> Mapping[str, Tensor]:
    """The frozen matrices, float32: the storage has one precision, whatever the model's, and one order of sums."""
    drawn, names = dict(weights.initial(start)), [f"{name}.weight" for name, _ in targets(start.model)]
    return {name: stored({"W": drawn[name]}, normal, double)["W"] for name in names}


def build(
    workload: Workload,
    topology: Topology,
    normal: bool,
    double: bool,
    permute: bool = False,
    math: bool = False,
    **options: Any,
) -> lora.Plain:
    model = lora.Plain(workload, permute, math, **options)
    base = rounded(workload.with_(dtype="fp32", micro_batches=1), normal, double)
    with torch.no_grad():
        for name, matrix in base.items():
            model.frozen()[name].copy_(matrix)
    return model
