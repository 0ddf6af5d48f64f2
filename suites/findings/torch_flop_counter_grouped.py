"""FlopCounterMode counts 0 FLOPs for torch.nn.functional.grouped_mm, forward and backward.

A user counts the FLOPs of a mixture of experts whose experts are one grouped product. The operator has no formula in
the counter's registry, so the experts count as nothing. The control is a product for each group.
"""

import sys

import torch
from torch.nn.functional import grouped_mm
from torch.utils.flop_counter import FlopCounterMode

ROWS, EXPERTS, K, N = 16, 4, 32, 16  # rows of a group


def each(x, weights):
    return torch.cat([part @ weight for part, weight in zip(x.chunk(EXPERTS), weights, strict=True)])


def grouped(x, weights):
    return grouped_mm(x, weights, offs=torch.arange(ROWS, ROWS * EXPERTS + 1, ROWS, dtype=torch.int32))


def counted(products):
    torch.manual_seed(0)
    x = torch.randn(ROWS * EXPERTS, K, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(EXPERTS, K, N, dtype=torch.bfloat16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        products(x, weights).square().sum().backward()
    return counter.get_total_flops()


try:
    expected, control, found = 3 * 2 * ROWS * EXPERTS * K * N, counted(each), counted(grouped)
    if control != expected:
        raise RuntimeError(f"single products are counted as {control:,}, not as {expected:,}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {expected:,}, as with a product for each group")
print(f"found    {found:,}")
print("still there" if found != expected else "gone")
sys.exit(1 if found != expected else 0)
