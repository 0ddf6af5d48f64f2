"""The positions of a sequence on each rank, and the part of a block of keys that a rank's queries may see: no tensors.

Positions of a sequence on N = 4 ranks, at the smallest length each layout can have:

    contiguous   0 │ 1 │ 2 │ 3                    Liu et al. 2023: rank r has the r-th of N runs
    striped      0 4 │ 1 5 │ 2 6 │ 3 7            Brandon et al. 2023, §3: rank r has every N-th position from r on
    zigzag       0 7 │ 1 6 │ 2 5 │ 3 4            Llama Team 2024, §3.3.2: rank r has runs r and 2N−1−r of 2N

The queries of rank r and the keys that were on rank s at first:

                 s = r       s < r            s > r
    contiguous   causal      all              nothing
    striped      causal      causal           causal, without the first query and the last key
    zigzag       causal      all × half the keys (the first)     half the queries (the second) × all

The step of a ring (``ring``) in which the query of a row meets the key of a column, by their positions:

            contiguous           striped              zigzag
    0       0                    0                    0
    1       0 0                  1 0                  1 0
    2       1 1 0                2 1 0                2 1 0
    3       1 1 0 0              3 2 1 0              3 2 1 0
    4       2 2 1 1 0            0 3 2 1 0            3 2 1 0 0
    5       2 2 1 1 0 0          1 0 3 2 1 0          2 1 0 3 3 0
    6       3 3 2 2 1 1 0        2 1 0 3 2 1 0        1 0 3 2 2 3 0
    7       3 3 2 2 1 1 0 0      3 2 1 0 3 2 1 0      0 3 2 1 1 2 3 0

With zigzag every rank has the same work in every step, with striped nearly the same. With contiguous, rank 0 (rows 0
and 1) has work only in step 0, and the last rank in all. Several documents in one sequence are laid out one by one:
each is distributed over all ranks, and is a block of its own.
"""

from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from harness.spec import Workload

LAYOUTS = ("contiguous", "striped", "zigzag")
CUTS = 3  # a packed sequence holds one document more


class Block(NamedTuple):
    """Queries ``rows`` see keys ``columns``: all of them, or, for equal numbers, those up to their own place."""

    rows: slice
    columns: slice
    causal: bool

    @property
    def pairs(self) -> int:
        """The number of pairs of query and key that meet: the cost of the block."""
        rows, columns = (part.stop - part.start for part in self[:2])
        return rows * (rows + 1) // 2 if self.causal else rows * columns


def documents(workload: Workload, packed: bool) -> tuple[int, ...]:
    """Lengths of the separate pieces of attention: the sequences of the batch, all alike; or, packed into one, the
    documents of each, whose ends are drawn, and are the same for every seed: ranks are laid out for them."""
    length = workload.sequence_length
    if not packed:
        return (length,)
    draw = Random(length)
    cuts = [sorted(draw.sample(range(1, length), min(CUTS, length - 1))) for _ in range(workload.batch_size)]
    return tuple(end - start for cut in cuts for start, end in zip([0, *cut], [*cut, length], strict=True))


def padded(length: int, layout: str, ranks: int, group: int = 1) -> int:
    """``length`` rounded up so that the layout can divide it over ``ranks`` rings of ``group`` ranks each. The padding
    comes after the last position, so only its own queries see it."""
    unit = ranks * group * (2 if layout == "zigzag" else 1)
    return -(-length // unit) * unit


def runs(layout: str, rank: int, ranks: int, length: int) -> list[slice]:
    """The positions on ``rank`` of a sequence of ``length``, a multiple of the layout's unit, in order."""
    if layout == "contiguous":
        size = length // ranks
        return [slice(rank * size, (rank + 1) * size)]
    if layout == "striped":
        return [slice(rank, length, ranks)]
    if layout == "zigzag":
        size = length // (2 * ranks)
        return [slice(i * size, (i + 1) * size) for i in (rank, 2 * ranks - 1 - rank)]
    raise ValueError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")


def blocks(layout: str, rank: int, source: int, lengths: Sequence[int]) -> list[Block]:
    """The work of ``rank`` with the keys of ``source``; ``lengths``: the positions of each document on one rank."""
    found = []
    for end, size in zip(accumulate(lengths), lengths, strict=True):
        start, middle = end - size, end - size // 2
        whole = slice(start, end)
        if source == rank:
            found.append(Block(whole, whole, True))
        elif layout == "contiguous":
            found += [Block(whole, whole, False)] if source < rank else []
        elif layout == "zigzag":
            half = (whole, slice(start, middle)) if source < rank else (slice(middle, end), whole)
            found.append(Block(*half, False))
        elif source < rank:
            found.append(Block(whole, whole, True))
        elif size > 1:
            found.append(Block(slice(start + 1, end), slice(start, end - 1), True))
    return found


def work(layout: str, ranks: int, lengths: Sequence[int]) -> list[list[int]]:
    """Pairs of query and key that meet, by rank and by step of the ring. In each step all wait for the slowest rank."""
    return [
        [sum(block.pairs for block in blocks(layout, rank, (rank - step) % ranks, lengths)) for step in range(ranks)]
        for rank in range(ranks)
    ]
