"""Published figures of context parallelism compared with measurements on one core within a few seconds.

Seconds are processor seconds, so that another process's load does not count.
"""

from collections.abc import Mapping, Sequence
from math import log2
from time import process_time
from typing import Any

import torch
from torch import Tensor

from harness.spec import Measurement, assessed, measured
from impls.parallelism.context_parallel.block_attention import attend, attend_backward
from impls.parallelism.context_parallel.layouts import LAYOUTS, blocks, work
from impls.parallelism.context_parallel.reference import naive
from impls.parallelism.context_parallel.ring import merge

Records = Sequence[Mapping[str, Any]]
REPEATS, ROUNDS = 2, 5
WITHIN = 0.05  # of a share or a ratio: two values closer than this count as equal
RANKS, LENGTH = 4, 4096  # positions for the balance: enough that a block's time is its work


def _draw(heads: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, length, 64, generator=generator) for _ in range(4)]


def _seconds(query: Tensor, key: Tensor, value: Tensor, d_output: Tensor, causal: bool) -> tuple[float, float]:
    """Processor seconds of one forward and one backward pass of a block."""
    start = process_time()
    output, logsumexp = attend(query, key, value, causal)
    middle = process_time()
    attend_backward(d_output, query, key, value, output, logsumexp, causal)
    return middle - start, process_time() - middle


def quadratic_cost(records: Records) -> Measurement:
    """512 → 8192 positions cost 256 × as much: true for attention, whose forward pass is timed."""
    times = {n: min(_seconds(*_draw(1, n), causal=False)[0] for _ in range(REPEATS)) for n in (512, 8192)}
    growth = times[8192] / times[512]
    return assessed(
        "quadratic_cost",
        "reproduced" if round(log2(growth)) == 8 else "contradicted",
        f"the forward pass of one head takes {growth:.0f} × as long; 2^7.5 to 2^8.5 counts as 256 × here",
        f"(8192 / 512)² = {(8192 // 512) ** 2}: only for the s × s products; a layer's other products grow 16 ×",
        value=growth,
        law=256.0,
        detail={"seconds": times},
    )


def activations(records: Records) -> Measurement:
    """Activations 1/CP: the bytes that a rank keeps from forward to backward, at 2 and at 4 ranks."""
    work_of = {"engine": "reference", "measure": "memory", "quantity": "saved", "dtype": "fp32"}
    ratios = {}
    for variant in ("ring", "ring_zigzag", "usp", "ulysses"):
        two, four = (measured(records, variant=variant, topology=f"cp{n}", **work_of) for n in (2, 4))
        if two and four:
            ratios[variant] = two[0] / four[0]
    arithmetic = (
        "output, log-sum-exp and exchanged tensors of s/N rows: 2 from 2 to 4 ranks; not if the key heads "
        "are fewer than the ranks that exchange heads, and are copied"
    )
    figures = {"law": 2.0}
    if "ring" not in ratios:
        reason = "this run has no memory figures of the ring's reference at cp2 and cp4"
        return assessed("activations", "out of reach here", reason, arithmetic, **figures)
    shown = ", ".join(f"{variant} {ratio:.2f}" for variant, ratio in ratios.items())
    same = abs(ratios["ring"] / 2 - 1) <= WITHIN
    return assessed(
        "activations",
        "reproduced" if same else "contradicted",
        f"bytes kept at 2 ranks ÷ at 4: {shown}",
        arithmetic,
        value=ratios["ring"],
        detail={"ratios": ratios},
        **figures,
    )


def recomputation(records: Records) -> Measurement:
    """Recomputation costs about 30 %: one more forward pass as a share of forward and backward."""
    rounds = [_seconds(*_draw(2, 2048), causal=True) for _ in range(3 * REPEATS)]
    forward, backward = (min(times) for times in zip(*rounds, strict=True))
    share = forward / (forward + backward)
    return assessed(
        "recomputation",
        "reproduced" if abs(share - 0.30) <= WITHIN else "contradicted",
        f"one more forward pass of the attention is {share:.1%} of a forward and backward pass here",
        "2 products of s × s forward and 5 backward: 2/7 = 28.6 % for attention; 1/3 for linear layers; the "
        "course does not define its figure",
        value=share,
        law=0.30,
        detail={"seconds": rounds},
    )


def sum_of_softmaxes(records: Records) -> Measurement:
    """A ring that adds each block's own softmax, without the log-sum-exp, compared with attention over all blocks."""
    query, key, value, _ = (x.double() for x in _draw(1, 256))
    parts = [attend(query, k, v, False) for k, v in zip(key.chunk(4, 2), value.chunk(4, 2), strict=True)]
    exact = naive(query, key, value, torch.full((query.shape[2],), key.shape[2]))
    added = sum(output for output, _ in parts)
    output, logsumexp = (x.clone() for x in parts[0])
    for further in parts[1:]:
        merge(output, logsumexp, *further)
    wrong, merged = (float((x - exact).norm() / exact.norm()) for x in (added, output))
    return assessed(
        "sum_of_softmaxes",
        "contradicted" if wrong > WITHIN else "reproduced",
        f"over 4 blocks the sum is off by {wrong:.0%} of the output's norm; merged by log-sum-exp, by {merged:.0e}",
        "each block's weights sum to 1, so those of N blocks sum to N; their mean gives all blocks the same weight",
        value=wrong,
        law=0.0,
        unit="relative error",
        detail={"merged": merged},
    )


def balance(records: Records) -> Measurement:
    """Zig-zag gives every rank the same causal work: seconds of each rank's blocks, one rank after another."""
    lengths = [LENGTH // RANKS]
    counted = {layout: _imbalance([sum(steps) for steps in work(layout, RANKS, lengths)]) for layout in LAYOUTS}
    rounds = [  # in alternation, so that a slow moment does not hit only one rank
        {layout: [_rank_seconds(layout, rank, lengths) for rank in range(RANKS)] for layout in LAYOUTS}
        for _ in range(ROUNDS)
    ]
    seconds = {
        layout: [min(times) for times in zip(*(each[layout] for each in rounds), strict=True)] for layout in LAYOUTS
    }
    found = {layout: _imbalance(times) for layout, times in seconds.items()}
    shown = "; ".join(f"{name} {found[name]:.2f}, counted {counted[name]:.2f}" for name in LAYOUTS)
    return assessed(
        "balance",
        "reproduced" if found["zigzag"] <= 1 + 2 * WITHIN < found["contiguous"] else "contradicted",
        f"busiest of {RANKS} ranks ÷ mean, {LENGTH} positions, forward and backward: {shown}",
        "contiguous: rank r has (2r + 1)/N² of the work, so the last has (2N − 1)/N of the mean; zig-zag: rank r has "
        "runs r and 2N−1−r, whose work adds up to the same for all",
        value=found["zigzag"],
        law=1.0,
        detail={"seconds": seconds, "measured": found, "counted": counted},
    )


def _rank_seconds(layout: str, rank: int, lengths: Sequence[int]) -> float:
    """Processor seconds of all the blocks that a rank computes, forward and backward."""
    query, key, value, d_output = _draw(1, sum(lengths))
    plan = [block for source in range(RANKS) for block in blocks(layout, rank, source, lengths)]
    return sum(
        sum(_seconds(query[:, :, r], key[:, :, c], value[:, :, c], d_output[:, :, r], causal)) for r, c, causal in plan
    )


def _imbalance(figures: Sequence[float]) -> float:
    return max(figures) * len(figures) / sum(figures)
