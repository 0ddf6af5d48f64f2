"""The number formats of FP8 training, from their definitions (Micikevicius et al. 2022, "FP8 formats for deep
learning", table 1; OCP MX v1.0, §5.3.1 and §5.4.1):

    E4M3   1 sign, 4 exponent, 3 mantissa bits, bias  7, max   448, no infinity, NaN = S.1111.111
    E5M2   1 sign, 5 exponent, 2 mantissa bits, bias 15, max 57344, infinity = S.11111.00, NaN = S.11111.{01, 10, 11}
    E8M0   8 exponent bits, bias 127: a power of two, the scale of an MX block

    value = (−1)^S · 2^(E − bias) · 1.M   if E > 0      (normal)
            (−1)^S · 2^(1 − bias) · 0.M   if E = 0      (subnormal, and zero)

A cast rounds to the nearest value, ties to the even mantissa. Beyond the maximum it *saturates*: ±max, for infinities
too. Without saturation E4M3 becomes NaN there and E5M2 an infinity. NaN stays NaN. PyTorch (2.12 and later) saturates
E4M3, infinities included, and does not saturate E5M2: 61,440 and more, half a step beyond 57,344, become infinite.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    exponent: int  # bits
    mantissa: int  # bits
    max: float
    dtype: torch.dtype
    overflow: float  # what lies beyond the maximum without saturation
    nan: int = 0x7F  # the bits that PyTorch writes

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1

    @property
    def min_exponent(self) -> int:
        """Of normal numbers."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Of ``max``: 8 for E4M3, 15 for E5M2 (OCP MX, e_max)."""
        return int(torch.tensor(self.max).frexp().exponent) - 1


E4M3 = Format(4, 3, 448.0, torch.float8_e4m3fn, torch.nan)
E5M2 = Format(5, 2, 57344.0, torch.float8_e5m2, torch.inf)
E8M0_MIN, E8M0_MAX = -127, 127  # exponents


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float32, from its bits; exponents from −126 to 127. (``exp2`` is not exact on every CPU.)"""
    return ((exponent.int() + 127) << 23).view(torch.float32)


def log2_floor(x: Tensor) -> Tensor:
    """⌊log₂ |x|⌋ of numbers that are not zero, exactly."""
    return torch.frexp(x.float()).exponent - 1


def cast(x: Tensor, f: Format, saturate: bool = True) -> Tensor:
    """The values of ``f`` nearest to x, in float32."""
    x = x.float()
    exponent = log2_floor(x).clamp(min=f.min_exponent)
    step = power_of_two(exponent - f.mantissa)  # between neighbours in this binade; one step for all subnormals
    rounded = (x / step).round() * step  # both exact except for round(), which takes ties to even
    if saturate:
        return rounded.clamp(-f.max, f.max)
    return torch.where(rounded.abs() > f.max, torch.copysign(torch.tensor(f.overflow), x), rounded)


def encode(values: Tensor, f: Format) -> Tensor:
    """The bits of values that ``f`` has, uint8: sign, exponent field, mantissa field."""
    size = values.abs()
    exponent = log2_floor(size).clamp(min=f.min_exponent)
    significand = (size / power_of_two(exponent - f.mantissa)).nan_to_num(posinf=0.0).int()  # 1.M or 0.M, shifted
    subnormal = significand < 2**f.mantissa
    field = torch.where(subnormal, 0, exponent + f.bias)
    code = (field << f.mantissa) | (significand & (2**f.mantissa - 1))
    code = torch.where(values.isinf(), (2**f.exponent - 1) << f.mantissa, code)
    code = torch.where(values.isnan(), f.nan, code)
    return (code | (values.signbit() << 7)).to(torch.uint8)
