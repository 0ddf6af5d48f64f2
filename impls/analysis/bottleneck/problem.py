"""The sizes of a model and a batch, and the FLOPs of a training step on them, product by product.

A product of [m, k] and [k, n] takes 2·m·n·k FLOPs, and its backward pass two products of as many. Everything else in a
step (norms, rotations, softmax, activations, the optimizer) is no product and counts as nothing, in every convention:

    whole        model FLOPs, each query with every key (Chowdhery et al. 2022, appendix B)
    causal       model FLOPs, each query with half of the keys, s²/2 pairs rather than s(s+1)/2, as trainers count
    flash        what a fused attention kernel executes: its backward pass computes QKᵀ again (Dao 2023, section 2.3)
    selective    hardware FLOPs: the backward pass computes QKᵀ and PV again (Korthikanti et al. 2022, section 5)
    recomputed   hardware FLOPs: the backward pass computes every layer again (Narayanan et al. 2021, section 3.5)
    grouped      whole, where experts are grouped products: the same FLOPs, if a counter sees them
    six_n        6 per token and parameter that a token meets, and nothing for QKᵀ and PV (Kaplan et al. 2020)
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

from harness.spec import Workload
from impls.analysis.bottleneck.sizes import GATED, config, numbers

PARTS = ("projections", "scores", "mlp", "router", "head")
EMBEDDING = "model.embed_tokens.weight"


class Product(NamedTuple):
    """``times`` products of [m, k] and [k, n]."""

    part: str
    name: str
    times: int
    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.times * self.m * self.n * self.k


def draw(workload: Workload, count: str, parts: bool) -> dict[str, int]:
    """The sizes, as integers; nothing is random."""
    return numbers(workload)


def plain(inputs: Mapping[str, Any], count: str, parts: bool) -> dict[str, int]:
    """The FLOPs of each part and of all; without ``parts``, of all alone."""
    if count == "six_n":
        return {"total": six_n(inputs)}
    found = dict.fromkeys(PARTS, 0)
    for product in forward(inputs):
        found[product.part] += step(product, count)
    total = {"total": sum(found.values())}
    return {**found, **total} if parts else total


def forward(sizes: Mapping[str, Any]) -> Iterator[Product]:
    """Every product of the forward pass."""
    b, s, h, layers = (sizes[n] for n in ("batch_size", "sequence_length", "hidden_size", "num_hidden_layers"))
    a, k, d = (sizes[n] for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    tokens = b * s
    yield Product("projections", "query", layers, tokens, a * d, h)
    yield Product("projections", "key", layers, tokens, k * d, h)
    yield Product("projections", "value", layers, tokens, k * d, h)
    yield Product("projections", "output", layers, tokens, h, a * d)
    yield Product("scores", "QKᵀ", layers * b * a, s, s, d)  # a head of keys is shared, but multiplied with each query
    yield Product("scores", "PV", layers * b * a, s, d, s)
    rows, f = tokens, sizes["intermediate_size"]
    if "num_experts" in sizes:
        yield Product("router", "router", layers, tokens, sizes["num_experts"], h)
        rows, f = tokens * sizes["num_experts_per_tok"], sizes["moe_intermediate_size"]
    if sizes["mlp_matrices"] == GATED:
        yield Product("mlp", "gate", layers, rows, f, h)
    yield Product("mlp", "up", layers, rows, f, h)
    yield Product("mlp", "down", layers, rows, h, f)
    yield Product("head", "head", 1, tokens, sizes["vocab_size"], h)


def step(product: Product, count: str) -> int:
    """A product of the forward pass, its backward pass, and its second forward pass, if it has one."""
    again = {
        "flash": product.name == "QKᵀ",
        "selective": product.part == "scores",
        "recomputed": product.part != "head",
    }.get(count, False)
    flops = product.flops + 2 * product.flops + again * product.flops
    return flops // 2 if count == "causal" and product.part == "scores" else flops


def six_n(sizes: Mapping[str, Any]) -> int:
    """The parameters that a token meets: all but the table of embeddings, which is only looked up, unless it is the
    head's matrix too; of the experts those that the token is sent to."""
    model = config(sizes)
    n = 0
    for name, shape in model.shapes():
        if name == EMBEDDING and not model.tie_word_embeddings:
            continue
        share = prod(shape)
        n += share * sizes["num_experts_per_tok"] // sizes["num_experts"] if ".experts." in name else share
    return 6 * n * sizes["batch_size"] * sizes["sequence_length"]
