"""The trained parameters of each method, in the order of the forward pass. Those that PEFT has too have its names.

h hidden_size   L layers   k key/value heads   d head_dim   f intermediate_size
m bottleneck    T virtual tokens               w hidden width of an MLP
"""

from collections.abc import Iterator
from itertools import pairwise
from math import prod

from harness.spec import ModelConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]
ENCODER = "prompt_encoder"
SCALED = ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")  # by (IA)³; the last one's input
HALVES = ("self_attn", "mlp")  # of a layer; each has an adapter


def trained(model: ModelConfig, method: str, m: int = 0, tokens: int = 0, width: int = 0) -> Shapes:
    """Name and shape."""
    h, layers, cache = model.hidden_size, range(model.num_hidden_layers), model.num_key_value_heads * model.head_dim
    if method == "bottleneck":
        for name in (f"model.layers.{layer}.{half}.adapter" for layer in layers for half in HALVES):
            yield f"{name}.down.weight", (m, h)
            yield f"{name}.down.bias", (m,)
            yield f"{name}.up.weight", (h, m)
            yield f"{name}.up.bias", (h,)
    elif method == "ia3":
        sizes = dict(zip(SCALED, (cache, cache, model.intermediate_size), strict=True))
        yield from ((f"model.layers.{layer}.{name}.ia3_l", (sizes[name],)) for layer in layers for name in SCALED)
    elif method == "prompt":
        yield f"{ENCODER}.embedding.weight", (tokens, h)
    elif method == "p_tuning":
        yield from mlp("mlp_head", tokens, (h, width, width, h))
    elif width:
        yield from mlp("transform", tokens, (cache, width, len(layers) * 2 * cache))
    else:
        yield f"{ENCODER}.embedding.weight", (tokens, len(layers) * 2 * cache)


def mlp(name: str, tokens: int, sizes: tuple[int, ...]) -> Shapes:
    """A row for each virtual token and the layers that turn it into a prompt."""
    yield f"{ENCODER}.embedding.weight", (tokens, sizes[0])
    for layer, (before, after) in enumerate(pairwise(sizes)):
        yield f"{ENCODER}.{name}.{2 * layer}.weight", (after, before)
        yield f"{ENCODER}.{name}.{2 * layer}.bias", (after,)


def parameters(model: ModelConfig, method: str, **sizes: int) -> int:
    """φ, the number of trained parameters."""
    return sum(prod(shape) for _, shape in trained(model, method, **sizes))
