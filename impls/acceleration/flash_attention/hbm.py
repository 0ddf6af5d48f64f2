"""Bytes that attention moves between HBM and SRAM (Dao et al. 2022, theorem 2), by the order of the loops.

Everything is counted as the references move it: each call of load() or store() in tiles.py moves one tile. With T
blocks in the outer loop, queries and keys of the same length and no mask, in units of s·d elements of a head:

                     keys outside (FlashAttention-1)             queries outside (FlashAttention-2)
    forward          K, V + T · (Q, O, O)          = 2 + 3 T     Q, O + T · (K, V)                    = 2 + 2 T
    backward         K, V, dK, dV + T · (Q, O, dO, dQ, dQ)       K, V, dK, dV + O, dO + T · (Q, dO, dQ, dQ)
                                                   = 4 + 5 T                                          = 6 + 4 T

and the rows' statistics. Standard attention writes and reads S and P: 4 s² + 4 s·d forward (algorithm 0), 7 s² + 8 s·d
backward (algorithm 3).
"""

from typing import NamedTuple

from impls.acceleration.flash_attention.rules import Mask
from impls.acceleration.flash_attention.tiles import blocks


class Sizes(NamedTuple):
    heads: int  # of queries, over the batch
    kv_heads: int  # of keys, over the batch
    queries: int
    keys: int
    width: int  # d
    element: int  # bytes of an element of Q, K, V, O and their gradients
    wide: int = 4  # bytes of an element of m, ℓ, L, D, and of dQ while it is summed


def forward(sizes: Sizes, outer: str, mask: Mask, b_r: int, b_c: int) -> int:
    """Bytes read and written by the forward pass."""
    h, _, s, t, d, e, w = sizes
    rows, keys = _visits(sizes, mask, b_r, b_c)
    if outer == "keys":  # once K and V; for each tile Q, and O, ℓ and m in and out
        return 2 * sizes.kv_heads * t * d * e + h * rows * (3 * d * e + 4 * w)
    return h * s * (2 * d * e + w) + 2 * sizes.kv_heads * keys * d * e  # once Q, O and L; for each tile K and V


def backward(sizes: Sizes, outer: str, mask: Mask, b_r: int, b_c: int) -> int:
    """Bytes read and written by the backward pass; keys are outside in both orders."""
    h, _, s, t, d, e, w = sizes
    rows, _ = _visits(sizes, mask, b_r, b_c)
    once = 4 * sizes.kv_heads * t * d * e  # K, V, dK and dV
    if outer == "keys":  # for each tile Q, O, dO, ℓ, m, and dQ in and out
        return once + h * rows * (3 * d * e + 2 * w + 2 * d * w)
    # Once O and dO for D; for each tile Q, dO, L, D, and dQ in and out.
    return once + h * s * (2 * d * e + w) + h * rows * (2 * d * e + 2 * w + 2 * d * w)


def standard(sizes: Sizes) -> int:
    """Both passes of standard attention without a mask or dropout."""
    h, _, s, t, d, e, _ = sizes
    return h * e * (11 * s * t + 12 * s * d)


def _visits(sizes: Sizes, mask: Mask, b_r: int, b_c: int) -> tuple[int, int]:
    """The sums of the rows and of the columns of all tiles that are computed."""
    tiles = [
        (rows, columns)
        for rows in blocks(sizes.queries, b_r)
        for columns in blocks(sizes.keys, b_c)
        if not mask.hides(rows, columns)
    ]
    height, width = (sum(tile[axis].stop - tile[axis].start for tile in tiles) for axis in (0, 1))
    return height, width
