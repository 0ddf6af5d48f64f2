"""PyTorch's profiler with ``with_flops=True``: FLOPs of the operators for which it has a formula.

Those are mm, addmm, bmm and baddbmm, conv2d, and mul and add, which are no products and are left out here. A fused
attention kernel has no formula: with one, attention counts as nothing.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile

from harness.spec import Function, Topology, Workload
from impls.analysis.bottleneck.calls import counted

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def count_flops(backend: SDPBackend, module: nn.Module, *inputs: Tensor) -> int:
    with sdpa_kernel(backend), profile(with_flops=True) as profiler:
        module(*inputs).sum().backward()
    return sum(event.flops for event in profiler.events() if event.name in PRODUCTS)


def build(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    flash = count == "flash"
    backend = SDPBackend.FLASH_ATTENTION if flash else SDPBackend.MATH

    def flops(sizes: Mapping[str, Any]) -> dict[str, int]:
        found = counted(sizes, partial(count_flops, backend), real=flash)
        return found if parts else {"total": found["total"]}

    return flops
