"""Published figures of FlashAttention compared with the reference, each in a few seconds.

A *growth* is the factor by which a figure rises when N doubles, and its *power* is log₂ of that, rounded: 1 is linear,
2 quadratic.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from math import log2
from time import process_time
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from harness.spec import Measurement, assessed
from impls.acceleration.flash_attention import fa3, hbm
from impls.acceleration.flash_attention.hbm import Sizes
from impls.acceleration.flash_attention.reference import B_C, FlashAttention, naive
from impls.acceleration.flash_attention.rules import Rules

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Records = list[dict[str, Any]]

PUBLISHED_MB = {256: (6.26, 3.22), 512: (25.02, 6.43), 1024: (80.02, 12.81), 2048: (320.02, 25.61)}  # standard, flash
PEAK_TFLOPS = {"A100": 312, "H100 SXM": 989}  # dense bf16, by the maker's data sheets


def _draw(heads: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, length, 64, generator=generator) for _ in range(3)]


def _saved(attention: Attention, length: int, device: str = "cpu") -> int:
    """Bytes kept for the backward pass in addition to the inputs, for one head with d = 64. The device "meta" knows
    sizes without computing."""
    inputs = [x.to(device).requires_grad_() for x in _draw(1, length)]
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = attention(*inputs)
    for x in inputs:
        kept.pop(x.untyped_storage()._cdata, None)
    kept.setdefault(output.untyped_storage()._cdata, output)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _seconds(length: int, heads: int, causal: bool) -> float:
    """Processor seconds of one forward pass of the reference: another process's load does not count."""
    inputs = _draw(heads, length)
    start = process_time()
    FlashAttention.apply(*inputs, Rules(causal))
    return process_time() - start


def _powers(figures: Mapping[int, float]) -> set[int]:
    values = [figures[n] for n in sorted(figures)]
    return {round(log2(after / before)) for before, after in pairwise(values)}


def memory_growth(records: Records) -> Measurement:
    """6.26/3.22 … 320.02/25.61 MB at N 256 … 2048: standard attention grows with N², flash with N."""
    ours = [{n: _saved(attention, n) for n in PUBLISHED_MB} for attention in (naive, FlashAttention.apply)]
    theirs = [{n: pair[i] for n, pair in PUBLISHED_MB.items()} for i in (0, 1)]
    growths = ", ".join(f"{theirs[0][2 * n] / theirs[0][n]:.2f}" for n in (256, 512, 1024))
    same = [_powers(figures) for figures in ours] == [_powers(figures) for figures in theirs] == [{2}, {1}]
    shown = ", ".join(f"{n}: {ours[0][n] / 2**20:.2f}/{ours[1][n] / 2**20:.2f}" for n in PUBLISHED_MB)
    return assessed(
        "memory_growth",
        "reproduced" if same else "contradicted",
        f"kept for the backward pass, one head of 64, MiB standard/flash at N {shown}: the growth is judged, not the "
        "sizes, since heads, batch and head dimension were not published",
        f"growths of the published standard figures are {growths}: the middle one is below N²'s 4, as if 25 "
        "matrices of N² floats were held up to N = 512 and 20 beyond",
        value=ours[0][2048] / ours[1][2048],
        detail={
            "saved_bytes": {"standard": ours[0], "flash": ours[1]},
            "published_ratio": theirs[0][2048] / theirs[1][2048],
        },
    )


def time_linear(records: Records) -> Measurement:
    """ "Time linear in N": the reference's forward pass, N 1024 to 4096."""
    times = {n: min(_seconds(n, heads=1, causal=False) for _ in range(3)) for n in (1024, 2048, 4096)}
    growth = (times[4096] / times[1024]) ** 0.5
    return assessed(
        "time_linear",
        "reproduced" if round(log2(growth)) == 1 else "contradicted",
        f"the forward pass takes {growth:.2f} × as long for each doubling of N; only memory is linear",
        "4·N²·d FLOPs with any tiling: 4 × per doubling; the published times also grow 3.8 × per doubling",
        value=growth,
        law=2.0,
        direction="lower",
        detail={"seconds": times},
    )


def causal_skip(records: Records) -> Measurement:
    """Skipping masked tiles makes causal attention 1.7–1.8 × faster (Dao 2023, section 3.1)."""
    rounds = [[_seconds(4096, heads=4, causal=causal) for causal in (False, True)] for _ in range(3)]
    full, skipped = (min(times) for times in zip(*rounds, strict=True))
    tiles = 4096 // B_C
    return assessed(
        "causal_skip",
        "reproduced" if full / skipped >= 1.7 else "contradicted",
        f"the reference's forward pass at N = 4096 takes {full:.3f} s of the processor, causal {skipped:.3f} s",
        "T² tiles against T (T + 1) / 2: at most 2 T / (T + 1), "
        f"{2 * tiles / (tiles + 1):.2f} for T = {tiles} and 2 in the limit",
        value=full / skipped,
        law=1.75,
        bound=1.7,
        direction="higher",
        detail={"seconds": rounds},
    )


def fa1_training(records: Records) -> Measurement:
    """FlashAttention trains GPT-2 3 × as fast as Hugging Face's code and 1.7 × as fast as Megatron's."""
    needs = "needs the 2022 kernels and both 2022 baselines, GPT-2 at sequence length 1024, on 8 A100"
    return assessed("fa1_training", "out of reach here", needs, "end to end; nothing to compute", law=3.0)


def fa2_over_fa1(records: Records) -> Measurement:
    """FlashAttention-2 is about 2 × as fast as FlashAttention."""
    needs = "needs the kernels of flash-attn 1 and 2 side by side on one A100"
    return assessed("fa2_over_fa1", "out of reach here", needs, "as many FLOPs in matmuls; fewer outside", law=2.0)


def fa2_a100(records: Records) -> Measurement:
    """Up to 230 TFLOP/s on an A100, 73 % of its peak."""
    arithmetic = f"230 / {PEAK_TFLOPS['A100']} = {230 / PEAK_TFLOPS['A100']:.3f}"
    needs = "needs an A100: sdpa_flash in bf16, head_dim 128, sequence_length 16384, causal off"
    return assessed("fa2_a100", "out of reach here", needs, arithmetic, law=230.0, unit="TFLOP/s", direction="higher")


def fa3_h100(records: Records) -> Measurement:
    """FlashAttention-3: 740 TFLOP/s in fp16 forward on an H100, 75 % of its peak."""
    arithmetic = f"740 / {PEAK_TFLOPS['H100 SXM']} = {740 / PEAK_TFLOPS['H100 SXM']:.3f}"
    needs = "needs an H100 and the FlashAttention-3 kernels, which PyTorch does not carry"
    return assessed("fa3_h100", "out of reach here", needs, arithmetic, law=740.0, unit="TFLOP/s", direction="higher")


def fa3_fp8_error(records: Records) -> Measurement:
    """FlashAttention-3's FP8 has an error 2.6 × lower than baseline FP8 attention (section 4.3): entries are normal,
    and one in a thousand has another of ten times that deviation added to it."""

    def draw(generator: torch.Generator) -> Tensor:
        x, outlier = (torch.randn(4096, 128, generator=generator, dtype=torch.float64) for _ in range(2))
        return x + 10 * outlier * (torch.rand(x.shape, generator=generator) < 1e-3)

    found: list[tuple[float, float]] = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (draw(generator) for _ in range(3))
        exact = (q @ k.T * 128**-0.5).softmax(-1) @ v
        outputs = [fa3.attention(q, k, v, block=remedies, mixed=remedies) for remedies in (False, True)]
        baseline, ours = (float((output - exact).square().mean()) for output in outputs)
        found.append((baseline, ours))
    ratios = sorted((baseline / ours) ** 0.5 for baseline, ours in found)
    baseline, ours = ((sum(squares) / len(found)) ** 0.5 for squares in zip(*found, strict=True))
    return assessed(
        "fa3_fp8_error",
        "reproduced" if ratios[0] <= 2.6 <= ratios[-1] else "contradicted",
        f"E4M3 emulated, three heads of 4096 × 128: root mean square error {baseline:.1e} with a scale per tensor, "
        f"{ours:.1e} with block quantisation and incoherent processing, {baseline / ours:.2f} × less; single heads "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} ×; the length was not published, and the ratio grows with it",
        f"its table of errors: 2.4e-2 / 9.1e-3 = {2.4e-2 / 9.1e-3:.2f}",
        value=baseline / ours,
        law=2.6,
        direction="higher",
        detail={"ratios": ratios},
    )


def fa1_hbm(records: Records) -> Measurement:
    """40.3 GB of HBM traffic become 4.4 GB: GPT-2 medium's attention, forward and backward, on an A100 (figure 2)."""
    # 64 sequences of 1024 with 16 heads of 64, in fp16; all of FlashAttention's tensors in 2 bytes.
    sizes = Sizes(64 * 16, 64 * 16, 1024, 1024, 64, element=2, wide=2)
    mask = Rules().mask(1024, 1024)
    moved = {
        b_c: sum(count(sizes, "keys", mask, 64, b_c) for count in (hbm.forward, hbm.backward)) / 1e9
        for b_c in (192 * 1024 // 2 // (4 * 64), 256)  # ⌈M / 4d⌉ with all of an A100's SRAM; the kernel's
    }
    paper, kernel = moved.values()
    standard = hbm.standard(sizes) / 1e9
    return assessed(
        "fa1_hbm",
        "reproduced" if paper <= 4.4 <= kernel else "contradicted",
        f"counted tile by tile as the reference moves them: {paper:.2f} GB with blocks of {next(iter(moved))} "
        f"keys, {kernel:.2f} GB with 256",
        f"standard attention moves 11 s² + 12 s·d elements a head, {standard:.1f} GB; 40.3 GB is with a mask and "
        f"dropout, each of which reads and writes s × s again, {2e-9 * 2 * 1024 * 1024 * 1024:.1f} GB a pass",
        value=paper,
        law=4.4,
        unit="GB",
        detail={"by_keys_in_a_block": moved, "standard": standard},
    )


def fa2_error(records: Records) -> Measurement:
    """The authors' tests demand of outputs and gradients at most twice the largest error of standard attention in the
    same precision, against float32's; here against float64's."""
    exact = [x.double().requires_grad_() for x in _draw(2, 512)]
    weight = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()

    def results(attention: Attention, inputs: list[Tensor]) -> list[Tensor]:
        output = attention(*inputs)
        return [output, *torch.autograd.grad(output, inputs, weight.to(output.dtype))]

    causal = Rules(causal=True)
    rounded = [x.detach().bfloat16() for x in exact]
    truth = results(lambda *x: naive(*x, causal), [x.double().requires_grad_() for x in rounded])
    off = []
    for each in (partial(naive, rules=causal), lambda *x: FlashAttention.apply(*x, causal)):
        found = results(each, [x.clone().requires_grad_() for x in rounded])
        pairs = zip(found, truth, strict=True)
        off.append([float((got.detach().double() - true.detach()).abs().max()) for got, true in pairs])
    ratios = {name: b / a for name, a, b in zip(("output", "dQ", "dK", "dV"), *off, strict=True)}
    return assessed(
        "fa2_error",
        "reproduced" if max(ratios.values()) <= 2 else "contradicted",
        "largest errors in bf16, causal, 512 × 64, as multiples of standard attention's: "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()),
        "the reference rounds once, at the end, and standard attention each of S, P and O",
        value=max(ratios.values()),
        law=2.0,
        detail={"ratios": ratios},
    )


def memory_to_16k(records: Records) -> Measurement:
    """ "Memory linear in sequence length" (Dao et al. 2022, theorem 1), for N from 512 to 16384."""
    lengths = [512 * 2**power for power in range(6)]
    ours = [{n: _saved(attention, n, "meta") for n in lengths} for attention in (naive, _few_tiles)]
    powers = [_powers(figures) for figures in ours]
    return assessed(
        "memory_to_16k",
        "reproduced" if powers == [{2}, {1}] else "contradicted",
        "kept for the backward pass, one head of 64, MiB standard/flash at N "
        + ", ".join(f"{n}: {ours[0][n] / 2**20:,.2f}/{ours[1][n] / 2**20:.2f}" for n in lengths),
        f"4 (d + 1) N bytes against 8 N² and more: {ours[0][16384] / ours[1][16384]:,.0f} × less at 16384",
        value=ours[0][16384] / ours[1][16384],
        detail={"standard": ours[0], "flash": ours[1]},
    )


def _few_tiles(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What is kept does not depend on the tiles; a window of one tile needs few of them."""
    output: Tensor = FlashAttention.apply(query, key, value, Rules(causal=True, window=B_C))
    return output
