"""Published figures of decoding compared with the reference on the work of the grid."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.spec import Measurement, Topology, Workload, assessed
from impls.acceleration.flash_decoding import laws, problem, reference
from impls.acceleration.flash_decoding.grid import CACHE
from impls.acceleration.flash_decoding.sizes import lengths

Records = Sequence[Mapping[str, Any]]
PLAIN: dict[str, Any] = {"queries": 1, "unified": False, "paged": False}
STDS = (1.0, 2.0, 4.0)  # of the scores


class Read(TorchDispatchMode):
    """Bytes of the second operands of batched products, which are keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::bmm":
            self.bytes += args[1].nbytes
        return func(*args, **(kwargs or {}))


def _inputs(workload: Workload, dtype: torch.dtype) -> dict[str, Tensor]:
    drawn = problem.draw(workload, **PLAIN)
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in drawn.items()}


def bytes_read(records: Records) -> Measurement:
    """A step reads each cached key and value once, whatever the number of splits and of query heads."""
    read, law = Read(), laws.cache_bytes(CACHE)
    with read:
        reference.build(CACHE, Topology(), **PLAIN)(_inputs(CACHE, torch.float32))
    intensity = laws.flops(CACHE, **PLAIN) / law
    return assessed(
        "cache_read_once",
        "reproduced" if read.bytes == law else "contradicted",
        f"the reference's products read {read.bytes:,} B of a cache of {law:,} B, for {sum(lengths(CACHE)):,} tokens",
        f"{intensity:.1f} FLOPs a byte in fp32, the query heads of a key head: a step is bound by memory",
        value=float(read.bytes),
        law=float(law),
        unit="B",
    )


def error(records: Records) -> Measurement:
    """The authors' own tests allow twice the error of standard attention in the same precision, against float32."""
    worst = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        inputs = _inputs(CACHE, dtype)
        exact = problem.plain(_inputs_of(inputs, torch.float64), **PLAIN)["output"]
        ours = reference.build(CACHE, Topology(), **PLAIN)(inputs)["output"]
        theirs = problem.plain(inputs, **PLAIN)["output"]
        worst = max(worst, float((ours - exact).abs().max() / (theirs - exact).abs().max()))
    return assessed(
        "decoding_error",
        "reproduced" if worst <= 2 else "contradicted",
        f"the reference's largest error is {worst:.2f} × that of standard attention, in fp32 and bf16",
        "each split is normalised by its own sum; the merge adds one rounding",
        value=worst,
        law=2.0,
        direction="lower",
    )


def _inputs_of(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def unified_range(records: Records) -> Measurement:
    """Llama2-7B: "> 99.99 % x_i are within [−16.8, 6.5]". Of normally distributed scores, by their standard
    deviation: the share outside, and the share of rows that fall back because of it."""
    outside, rows = {}, {}
    for std in STDS:
        work = CACHE.with_(input_scale=std**0.5)
        inputs = _inputs(work, torch.float64)
        found = problem.plain(inputs, **{**PLAIN, "unified": True})["fallbacks"]
        rows[std] = found / (sum(length > 0 for length in lengths(work)) * work.model.num_attention_heads)
        normal = torch.distributions.Normal(0.0, std)
        low, high = (normal.cdf(torch.tensor(edge)) for edge in (problem.A, problem.B))
        outside[std] = float(low + 1 - high)
    told = "; ".join(f"σ = {std:g}: {outside[std]:.2g} of the scores, {rows[std]:.0%} of the rows" for std in STDS)
    return assessed(
        "unified_range",
        "out of reach here",
        f"needs Llama2-7B and OPT-6.7B. Drawn scores leave [{problem.A}, {problem.B}] with {told} of up to "
        f"{CACHE.sequence_length} keys: the range serves models with small scores alone",
        "a row of s scores stays inside with (1 − p)^s: 99.99 % of the scores are 90 % of the rows at s = 1000",
        value=rows[STDS[0]],
        detail={"outside": outside, "rows": rows},
    )


def speedup(records: Records) -> Measurement:
    """Up to 8 × faster generation, attention up to 50 × faster than FlashAttention at 64k tokens (CodeLlama-34B)."""
    needs = "needs A100s, CodeLlama-34B and FlashAttention-2 without split KV, from 512 to 64k tokens"
    arithmetic = "without splits one query has b · h programs: 1 × 64 for the 108 multiprocessors of an A100"
    return assessed("decoding_speedup", "out of reach here", needs, arithmetic, law=8.0, unit="×", direction="higher")


def unified_speedup(records: Records) -> Measurement:
    """1.37 × over Flash-Decoding on average; up to 4.86 × over Hugging Face on NVIDIA GPUs, 2.18 × on AMD's."""
    needs = "needs the authors' engine, Llama2 and an A100; their kernels were not published"
    arithmetic = "the synchronised update is said to be 18.8 % of attention: alone it gives at most 1.23 ×"
    return assessed("unified_speedup", "out of reach here", needs, arithmetic, law=1.37, unit="×", direction="higher")
