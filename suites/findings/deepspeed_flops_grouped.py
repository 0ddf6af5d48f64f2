"""DeepSpeed's FlopsProfiler counts 0 FLOPs for torch.nn.functional.grouped_mm.

A user profiles a mixture of experts from Transformers 5, whose experts are one grouped product by default. The profiler
patches linear, matmul, bmm and others, but not the grouped product. The control is a product for each group.
"""

import logging
import os
import sys

os.environ |= {"DS_ACCELERATOR": "cpu"}
import torch
import torch.nn.functional as F
from deepspeed.profiling.flops_profiler import FlopsProfiler
from torch import nn

logging.disable(logging.WARNING)
ROWS, EXPERTS, K, N = 16, 4, 32, 16  # rows of a group


class Each(nn.Module):
    def forward(self, x, weights):
        return torch.cat([part @ weight for part, weight in zip(x.chunk(EXPERTS), weights, strict=True)])


class Grouped(nn.Module):
    def forward(self, x, weights):
        return F.grouped_mm(x, weights, offs=torch.arange(ROWS, ROWS * EXPERTS + 1, ROWS, dtype=torch.int32))


def counted(model):
    x, weights = (torch.randn(*size, dtype=torch.bfloat16) for size in ((ROWS * EXPERTS, K), (EXPERTS, K, N)))
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(x, weights)
    flops = profiler.get_total_flops()
    profiler.end_profile()
    return flops


try:
    expected, control, found = 2 * ROWS * EXPERTS * K * N, counted(Each()), counted(Grouped())
    if control != expected:
        raise RuntimeError(f"single products are counted as {control:,}, not as {expected:,}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {expected:,} in the forward pass, as with a product for each group")
print(f"found    {found:,}")
print("still there" if found != expected else "gone")
sys.exit(1 if found != expected else 0)
