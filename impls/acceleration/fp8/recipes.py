"""The scaling recipes: which elements share a scale, how it is rounded, and the format of gradients.

A *tile* (rows, columns) of a matrix whose products sum over columns shares a scale; 0 stands for the whole dimension.

    recipe      x and dY   W          scale s from the tile's largest |element| (amax)
    tensor      (0, 0)     (0, 0)     max / amax                                   Micikevicius et al. 2022, §3.2
    delayed     (0, 0)     (0, 0)     max / largest amax of the last steps         Transformer Engine, DelayedScaling
    rows        (1, 0)     (1, 0)     2^⌊log₂ max / amax⌋                          torchao, ROWWISE
    blocks      (1, 128)   (128, 128) 2^⌊log₂ max / amax⌋                          DeepSeek-V3, §3.3.2
    mx          (1, 32)    (1, 32)    2^(e_max − ⌊log₂ amax⌋)                      OCP MX v1.0, §6.3
    mx_ceil     (1, 32)    (1, 32)    2^⌊log₂ max / amax⌋                          Transformer Engine, torchao RCEIL

``mx`` lets elements between max and 2^(e_max + 1) saturate; ``mx_ceil`` takes the next larger block scale instead.
"""

from dataclasses import dataclass
from enum import Enum

Tile = tuple[int, int]


class Rule(Enum):
    EXACT = "max / amax, in float32"
    DOWN = "the power of two at or below it"
    MX = "the power of two that brings amax into the topmost binade"


class Across(Enum):
    """How the backward pass gets operands whose products sum over rows."""

    TRANSPOSED = "the codes and scales of the forward pass: a tile has the same elements either way"
    REQUANTISED = "the tile's values, transposed and quantised again: only those of the forward pass are kept"
    ANEW = "quantised in the forward pass too, along the other dimension, and kept instead"


@dataclass(frozen=True)
class Recipe:
    tile: Tile  # of x and dY
    weight_tile: Tile
    rule: Rule
    across: Across  # for x; dY is at hand in full precision
    delayed: bool = False


RECIPES = {
    "tensor": Recipe((0, 0), (0, 0), Rule.EXACT, Across.TRANSPOSED),
    "delayed": Recipe((0, 0), (0, 0), Rule.EXACT, Across.TRANSPOSED, delayed=True),
    "rows": Recipe((1, 0), (1, 0), Rule.DOWN, Across.ANEW),
    "blocks": Recipe((1, 128), (128, 128), Rule.DOWN, Across.REQUANTISED),
    "mx": Recipe((1, 32), (1, 32), Rule.MX, Across.ANEW),
    "mx_ceil": Recipe((1, 32), (1, 32), Rule.DOWN, Across.ANEW),
}
