"""Published figures of FP8 training, each tested in about a second."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from harness.spec import Measurement, assessed, measured
from impls.acceleration.fp8.accumulation import product
from impls.acceleration.fp8.formats import E4M3, E5M2, cast
from impls.acceleration.fp8.grid import ALIGNED
from impls.acceleration.fp8.laws import codes
from impls.acceleration.fp8.recipes import RECIPES

Records = Sequence[Mapping[str, Any]]


def casts(records: Records) -> Measurement:
    """The course's quantiser divides the range into equal steps. A float's step follows the size of the number."""
    shown = [(E4M3, "E4M3", 123.456), (E4M3, "E4M3", 12.3456), (E5M2, "E5M2", 123.456)]
    found = [float(cast(torch.tensor(x), f)) for f, _, x in shown]
    values = ", ".join(f"{name} of {x} is {v:g}" for (_, name, x), v in zip(shown, found, strict=True))
    return assessed(
        "fp8_casts",
        "contradicted" if found == [120.0, 12.0, 128.0] else "reproduced",
        f"{values}: a number ten times smaller keeps its relative error, which no fixed-point quantiser does",
        "steps of 8 from 64 to 128 and of 1 from 8 to 16 in E4M3; of 16 from 64 to 128 in E5M2",
        value=found[0],
        unit="",
    )


def memory(records: Records) -> Measurement:
    """What a linear layer keeps for the backward pass: its operands, in a byte an element instead of bf16's two."""
    model, t, size = ALIGNED.model, ALIGNED.tokens, 4
    h, n = model.hidden_size, model.intermediate_size
    cases = {"engine": "reference", "measure": "memory", "quantity": "saved", "workload": "aligned", "dtype": "fp32"}
    kept = [value - t * n * size for value in measured(records, variant="fp8_blocks", **cases)]
    recipe = RECIPES["blocks"]
    promised = codes(t, h, recipe.tile) + codes(n, h, recipe.weight_tile)
    ratio = (kept[0] if kept else promised) / (2 * (t * h + n * h))
    return assessed(
        "fp8_memory",
        ("reproduced" if abs(ratio - 0.5) < 0.05 else "contradicted") if kept else "formula only",
        f"the operands kept in 1×128 and 128×128 tiles take {ratio:.1%} of their bytes in bf16, scales included; "
        "outputs, master weights and the optimizer's states are as large as before",
        f"1 B of 2, and 4 B for every tile: {promised / (2 * (t * h + n * h)):.1%}",
        value=ratio,
        law=0.5,
    )


def speed(records: Records) -> Measurement:
    """1.5–2 × faster than bf16."""
    needs = "needs a GPU with FP8 units: products of the sizes of a training step, in FP8 and in bf16"
    arithmetic = "H100 SXM, dense: 1,979 TFLOP/s in FP8 and 989 in bf16, a ratio of 2, without the casts"
    return assessed("fp8_speed", "out of reach here", needs, arithmetic, law=2.0, direction="higher")


def accumulation(records: Records) -> Measurement:
    """Emulated sums of 4096 products of normal numbers in E4M3 with 14 bits, without and with promotion."""
    worst: dict[int | None, list[float]] = {None: [], 128: []}
    norms: dict[int | None, list[float]] = {None: [], 128: []}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        a, b = (cast(torch.randn(16, 4096, generator=generator), E4M3) for _ in range(2))
        truth = a.double() @ b.double().mT
        for promotion in worst:
            error = product(a, b, promotion) - truth
            worst[promotion].append(float((error / truth).abs().max()))
            norms[promotion].append(float(error.norm() / truth.norm()))
    largest, norm, promoted = median(worst[None]), median(norms[None]), median(norms[128])
    return assessed(
        "fp8_accumulation",
        "reproduced" if 0.01 <= largest <= 0.04 else "contradicted",
        f"the largest relative error of 256 sums is {largest:.1%}, the median of three draws; it is that of a sum near "
        f"zero: over all sums together the error is {norm:.2%}, and {promoted:.3%} if partial sums are promoted to "
        "float32 every 128 elements",
        "128 additions, each cut at 2^-13 of its larger operand",
        value=largest,
        law=0.02,
        detail={
            "largest": {str(key): value for key, value in worst.items()},
            "norm": {str(k): v for k, v in norms.items()},
        },
    )
