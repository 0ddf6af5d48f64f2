"""Published figures of grouped products compared with an emulation of Hopper's tensor cores, and with this run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.spec import Measurement, assessed
from impls.acceleration.grouped_gemm.problem import E4M3, LARGEST, quantised, spread
from impls.acceleration.grouped_gemm.sizes import BLOCK

Records = Sequence[Mapping[str, Any]]
BITS, AT_ONCE, K, SIDE = (
    14,
    32,
    4096,
    32,
)  # bits kept; products at once; the claim's K; sides


def kept(terms: Tensor, largest: Tensor) -> Tensor:
    """Terms aligned to the exponent of the largest by a right shift that fills in the sign, of which the highest 14
    bits are kept: a shift rounds down."""
    unit = torch.exp2(torch.frexp(largest)[1].double() - BITS)
    return (terms / unit).floor() * unit


def accumulated(x: Tensor, w: Tensor, promoted: int = 0, together: bool = True) -> Tensor:
    """x [m, k] and w [n, k] → x wᵀ [m, n] with 14 bits of accumulation (DeepSeek-V3, sections 3.3.2 and 3.5.2): an
    instruction aligns 32 products, ``together`` with the sum so far or before they are added to it. With ``promoted``
    the sum is taken out after so many elements and added exactly."""
    exact = torch.zeros(len(x), len(w), dtype=torch.float64)  # [m, n]
    total = torch.zeros_like(exact)
    for start in range(0, x.shape[1], AT_ONCE):
        some = slice(start, start + AT_ONCE)
        terms = x[:, None, some] * w[None, :, some]  # [m, n, 32]
        if together:
            terms = torch.cat([terms, total[..., None]], -1)  # [m, n, 33]
        total_of = kept(terms, terms.abs().amax(-1, keepdim=True)).sum(-1)
        total = total_of if together else kept(total + total_of, total + total_of)
        if promoted and (start + AT_ONCE) % promoted == 0:
            exact, total = exact + total, torch.zeros_like(total)
    return exact + total


def _drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices of normally distributed numbers in E4M3 with K = 4096, and their product."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(SIDE, K, generator=generator).to(E4M3).double() for _ in range(2))
    return x, w, x @ w.mT


def _error(found: Tensor, exact: Tensor) -> float:
    """The largest error, relative to the largest element."""
    return float((found - exact).abs().max() / exact.abs().max())


def fourteen_bits(records: Records) -> Measurement:
    """ "Taking GEMM operations of two random matrices with K = 4096 for example, in our preliminary test, the limited
    accumulation precision in Tensor Cores results in a maximum relative error of nearly 2 %"."""
    x, w, exact = _drawn()
    apart, together = (_error(accumulated(x, w, together=flag), exact) for flag in (False, True))
    return assessed(
        "fourteen_bits",
        "formula only",
        f"emulated: {together:.1%} if 14 bits of each product are kept below the exponent of products and sum, "
        f"{apart:.2%} if below that of the 32 products alone; the tensor cores decide which",
        "a shift rounds down, by half a unit on average: K · 2⁻¹⁴ of the sum's exponent in the worst case",
        value=together,
        law=0.02,
        detail={"apart": apart},
    )


def promotion(records: Records) -> Measurement:
    """Every N_C = 128 elements the sum is added in FP32, "the minimal accumulation interval, equivalent to 4 WGMMAs,
    that can significantly improve precision without introducing substantial overhead"."""
    x, w, exact = _drawn()
    without, with_it = (_error(accumulated(x, w, promoted=each), exact) for each in (0, BLOCK))
    return assessed(
        "promotion",
        "reproduced" if with_it < without / 10 else "contradicted",
        f"emulated at K = {K}: the largest error is {with_it:.2%} with promotion, {without:.2%} without; the overhead "
        "needs a Hopper GPU",
        f"{K} / {BLOCK} = {K // BLOCK} sums are each {K // BLOCK} times shorter",
        value=without / with_it,
        unit="×",
        direction="higher",
    )


def block_scales(records: Records) -> Measurement:
    """ "At the tile-wise and block-wise levels … by adapting the scale according to smaller groups of elements": the
    error of a product whose rows have a few outliers, with scales of blocks and with one of each tensor."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(256, 1024, generator=generator, dtype=torch.float64) for _ in range(2))
    x[:, 100] *= 1e5  # one channel: far outside of E4M3's range beside the others
    exact, errors = x @ w.mT, {}
    exact -= torch.outer(x[:, 100], w[:, 100])  # the outlier's own share hides all others
    for name in ("tensor", "blocks"):
        parts = []
        for matrix, height in ((x, 1), (w, BLOCK)):
            if name == "blocks":
                bits, scale = quantised(matrix, height)
                parts.append(bits.view(E4M3).double() * spread(scale, height, matrix.shape))
            else:
                one = matrix.abs().max() / LARGEST
                parts.append((matrix / one).to(E4M3).double() * one)
        product = parts[0] @ parts[1].mT - torch.outer(parts[0][:, 100], parts[1][:, 100])
        errors[name] = float((product - exact).norm() / exact.norm())
    return assessed(
        "block_scales",
        "reproduced" if errors["blocks"] < errors["tensor"] / 2 else "contradicted",
        f"beside one channel of outliers × 10⁵, the others' product has an error of {errors['tensor']:.1%} with one "
        f"scale a tensor, {errors['blocks']:.1%} with blocks",
        "E4M3 spans 448 / 2⁻⁹ = 2.3 · 10⁵: what is smaller than that below the largest becomes 0",
        value=errors["tensor"] / errors["blocks"],
        unit="×",
        direction="higher",
        detail={"errors": errors},
    )


def ceiling(records: Records) -> Measurement:
    """Up to 1550 TFLOP/s on an H800; here, each engine's share of the ceiling of products measured in the same run."""
    shares = {
        f"{record['variant']} {record['engine']}": record["detail"]["mfu"]
        for record in records
        if record["measure"] == "throughput" and (record["detail"] or {}).get("mfu")
    }
    told = ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda pair: -pair[1]))
    return assessed(
        "ceiling",
        "out of reach here",
        f"needs an H800 and DeepGEMM; shares of the ceiling of products in this run: {told or 'none was timed'}",
        "1550 / 1979 = 78 % of the dense FP8 peak on the data sheet",
        law=1550.0,
        unit="TFLOP/s",
        direction="higher",
        detail={"shares": shares},
    )
