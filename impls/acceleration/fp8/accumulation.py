"""Sums of FP8 products in a Hopper tensor core, as DeepSeek-V3 describes them (§3.3.2 and §3.5.2), emulated.

An instruction adds 32 products. They are aligned to the largest of them, keep their highest 14 bits, lose the rest, and
are added; so is their sum to the accumulator, which has 14 bits as well. *Promotion* ends this every 128 elements of K:
the partial sum is added in float32, and the accumulator starts anew.

    step 1    2^-3 * [1.01…    ]            products, aligned to the largest
              2^-3 * [0.0001…  |…           bits to the right of the bar are lost
    step 2    accumulator + sum             aligned and cut in the same way
"""

import torch
from torch import Tensor

from impls.acceleration.fp8.formats import log2_floor, power_of_two

BITS, INSTRUCTION, PROMOTION = 14, 32, 128


def cut(x: Tensor, largest: Tensor) -> Tensor:
    """x without the bits below the 14th, counted from the leading bit of ``largest``."""
    place = power_of_two(log2_floor(largest) - (BITS - 1)).double()
    return torch.where(largest > 0, (x / place).trunc() * place, 0.0)


def product(a: Tensor, b: Tensor, promotion: int | None = PROMOTION) -> Tensor:
    """a bᵀ [m, n] of values [m, k] and [n, k] that FP8 has, in float64 except for what the hardware loses."""
    (m, k), n = a.shape, len(b)
    accumulator, promoted = a.new_zeros(m, n, dtype=torch.float64), torch.zeros(m, n)  # the second in float32
    for start in range(0, k, INSTRUCTION):
        chunk = slice(start, start + INSTRUCTION)
        terms = a[:, None, chunk].double() * b[None, :, chunk].double()  # [m, n, 32]
        total = cut(terms, terms.abs().amax(-1, keepdim=True)).sum(-1)  # [m, n]
        largest = torch.maximum(accumulator.abs(), total.abs())
        accumulator = cut(accumulator, largest) + cut(total, largest)
        accumulator = cut(accumulator, accumulator.abs())  # the sum may have a bit more
        if promotion and (start + INSTRUCTION) % promotion == 0:
            promoted += accumulator.float()
            accumulator = torch.zeros_like(accumulator)
    return promoted.double() + accumulator
