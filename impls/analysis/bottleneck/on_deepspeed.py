"""DeepSpeed's FlopsProfiler. It patches functions of PyTorch during a forward pass and adds formulas of their shapes.

It counts multiply-adds (MACs) and FLOPs; the latter include activations and softmax, which are no products, so that
twice the MACs is taken here. It does not see the backward pass: its report takes it as twice the forward pass, and so
does this adapter.
"""

from collections.abc import Mapping
from typing import Any

from deepspeed.profiling.flops_profiler import FlopsProfiler
from torch import Tensor, nn

from harness.spec import Function, Topology, Workload
from impls.analysis.bottleneck.calls import counted, unchanged
from impls.analysis.bottleneck.grouped import grouped


def count_flops(module: nn.Module, *inputs: Tensor) -> int:
    profiler = FlopsProfiler(module)
    profiler.start_profile()
    try:
        module(*inputs)
        macs = profiler.get_total_macs()
    finally:
        profiler.end_profile()
    return (1 + 2) * 2 * macs


def build(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    wrap = grouped if count == "grouped" else unchanged

    def flops(sizes: Mapping[str, Any]) -> dict[str, int]:
        found = counted(sizes, count_flops, wrap=wrap)
        return found if parts else {"total": found["total"]}

    return flops
