"""QLoRA's bits a parameter and NF4's error, on this run's storage and on normally distributed numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from harness.spec import Measurement, assessed
from impls.finetuning.nf4.reference import BLOCK, SCALES, dequantise, float4, normal_float, quantise

Records = Sequence[Mapping[str, Any]]


def bits(records: Records) -> Measurement:
    """4 + 32/64, and 4 + 8/64 + 32/(64 · 256)."""
    single, double = 4 + 32 / BLOCK, 4 + 8 / BLOCK + 32 / (BLOCK * SCALES)
    arithmetic = f"4 + 32/64 = {single}; 4 + 8/64 + 32/(64 · 256) = {double:.4f}; saved {single - double:.3f}"
    verdicts = [
        record["verdict"]
        for record in records
        if (record["measure"], record["quantity"], record["engine"]) == ("parity", "exact", "bitsandbytes")
        and record["variant"] == "nf4_single"
    ]
    if not verdicts:
        return assessed(
            "qlora_bits", "formula only", f"{arithmetic}; this run has no storage of bitsandbytes", arithmetic
        )
    same = set(verdicts) == {"pass"}
    reason = f"{arithmetic}; the bytes of bitsandbytes' tensors are {'as many' if same else 'others'} without doubling"
    return assessed("qlora_bits", "reproduced" if same else "contradicted", reason, arithmetic, value=double, law=4.127)


def error(records: Records) -> Measurement:
    """The root mean square error of N(0, 1) in both formats."""
    x = torch.randn(2**18, generator=torch.Generator().manual_seed(0))
    off = {}
    for name, values in (("NF4", normal_float()), ("FP4", float4())):
        back = dequantise(*quantise(x, values, BLOCK), values, BLOCK)
        off[name] = float((back - x).square().mean().sqrt())
    ratio = off["FP4"] / off["NF4"]
    arithmetic = ", ".join(f"{name}: {value:.4f} σ" for name, value in off.items())
    reason = f"root mean square error of 2¹⁸ normally distributed numbers: {arithmetic}; FP4's is {ratio:.2f} × NF4's"
    status = "reproduced" if ratio > 1 else "contradicted"
    return assessed("nf4_error", status, reason, arithmetic, value=ratio, law=1.0)
