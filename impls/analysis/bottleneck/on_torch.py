"""PyTorch's FlopCounterMode over the decoder's own forward and backward pass.

It sees the operators that are dispatched. SDPA's naive form is two products forward and four backward, which is the
convention ``whole``; it knows no mask. A fused kernel is one operator with a formula of its own, in which the backward
pass computes QKᵀ again: ``flash``. What a checkpoint computes again is dispatched again, and counted.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from harness.spec import Function, Topology, Workload
from impls.analysis.bottleneck.calls import counted, unchanged
from impls.analysis.bottleneck.grouped import grouped
from impls.common.decoder import Attention, attend


class Recomputed(nn.Module):
    """A module whose backward pass begins with a second forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return checkpoint(self.module, *inputs, use_reentrant=False)


def selective(module: nn.Module) -> nn.Module:
    """Its attention is computed a second time, from queries, keys and values."""
    for part in module.modules():
        if isinstance(part, Attention):
            part.attend = partial(checkpoint, attend, use_reentrant=False)  # type: ignore[method-assign]
    return module


def count_flops(backend: SDPBackend, module: nn.Module, *inputs: Tensor) -> int:
    # A second forward pass ends, by default, at the last tensor that is needed, before the last product.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(backend), set_checkpoint_early_stop(False):
        module(*inputs).sum().backward()
    return counter.get_total_flops()


def build(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    flash, wrap = (
        count == "flash",
        {"recomputed": Recomputed, "selective": selective, "grouped": grouped}.get(count, unchanged),
    )
    backend = SDPBackend.FLASH_ATTENTION if flash else SDPBackend.MATH

    def flops(sizes: Mapping[str, Any]) -> dict[str, int]:
        half = torch.autocast("cuda", torch.bfloat16, enabled=flash and torch.cuda.is_available())  # or has no kernel
        with half:
            found = counted(sizes, partial(count_flops, backend), real=flash, wrap=wrap)
        return found if parts else {"total": found["total"]}

    return flops
