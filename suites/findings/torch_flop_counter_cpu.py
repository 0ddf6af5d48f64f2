"""FlopCounterMode counts 0 FLOPs for scaled_dot_product_attention on a CPU.

A user counts the FLOPs of a model on a CPU before a run on GPUs. SDPA chooses its flash kernel for the CPU, which has
no formula in the counter's registry, neither forward nor backward. The control is the same call through the math back
end.
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

B, HEADS, S, D = 2, 4, 64, 16


def counted(*backends):
    q, k, v = (torch.randn(B, HEADS, S, D, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(list(backends)):
        scaled_dot_product_attention(q, k, v).sum().backward()
    return counter.get_total_flops()


try:
    product = 2 * B * HEADS * S * S * D
    control = counted(SDPBackend.MATH)
    found = counted(SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)  # as by default: flash first
    if control != 6 * product:
        raise RuntimeError(f"the math back end is counted as {control:,}, not as {6 * product:,}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected {6 * product:,} (six products, as the math back end) or {7 * product:,} (QK is computed again)")
print(f"found    {found:,}")
wrong = found not in (6 * product, 7 * product)
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
