"""The promise of FP8 operands: a byte an element."""

from harness.spec import Topology, Workload
from impls.acceleration.fp8.problem import HISTORY
from impls.acceleration.fp8.recipes import RECIPES, Across, Tile


def saved(workload: Workload, topology: Topology, scaling: str, gradients: str) -> float:
    """Bytes held from the forward to the backward pass: the output, T · n elements of the workload's precision, and
    codes of x and W, one byte each of T · h + n · h, with a float32 scale for every tile. A bf16 layer keeps 2 bytes of
    each. Where products over rows need other codes (rows, mx), those are kept instead, and the codes of the forward
    pass, which the case returns, are held beside them."""
    recipe, size = RECIPES[scaling], workload.element_size
    t, h, n = workload.tokens, workload.model.hidden_size, workload.model.intermediate_size
    one_way = codes(t, h, recipe.tile) + codes(n, h, recipe.weight_tile)
    other = codes(h, t, recipe.tile) + codes(h, n, recipe.weight_tile) if recipe.across is Across.ANEW else 0
    return float(t * n * size + one_way + other + (2 * HISTORY * size if recipe.delayed else 0))


def codes(m: int, k: int, tile: Tile) -> int:
    """Bytes of a quantised matrix [m, k]."""
    r, c = tile[0] or m, tile[1] or k
    return m * k + 4 * -(-m // r) * -(-k // c)
