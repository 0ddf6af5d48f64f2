"""The parameters that prediction adds to the main model, which shares its embedding and its head with every depth."""

from collections.abc import Iterator
from math import prod

from harness.spec import ModelConfig


def added(model: ModelConfig, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Canonical names and shapes of depths 1 to ``depth``: two gains, M_k, TRM_k and the gain before the head."""
    h = model.hidden_size
    for k in range(depth):
        yield f"mtp.{k}.hnorm.weight", (h,)
        yield f"mtp.{k}.enorm.weight", (h,)
        yield f"mtp.{k}.eh_proj.weight", (h, 2 * h)
        yield from ((f"mtp.{k}.layer.{name}", shape) for name, shape in model.layer_shapes())
        yield f"mtp.{k}.norm.weight", (h,)


def parameters(model: ModelConfig) -> int:
    """ψ, the parameters of one depth: 2h² of M_k, 3h of gains, and a layer."""
    return sum(prod(shape) for _, shape in added(model, 1))
