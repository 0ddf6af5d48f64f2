"""FLOPs of a training step in closed form, as papers and trainers report them.

Kaplan et al. 2020, "Scaling Laws for Neural Language Models", §2.1, table 1: 2N a token forward and 4N backward,

    C = 6N                            N parameters without embeddings

Chowdhery et al. 2022, "PaLM", appendix B: the same and, a token and layer, 4·H·Q·T for QKᵀ and PV forward, 8 backward,

    C = 6N + 12·L·H·Q·T               whole: each query with every key, although half of them are masked

Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters", appendix: a GPT with MLPs of 4h,
every layer computed twice forward; the logits are not recomputed,

    F = 96·B·s·l·h² (1 + s/6h + V/16lh)

Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", appendix A: *model* FLOPs of
that GPT depend on the model alone, *hardware* FLOPs count what is computed again; MFU and HFU are these by the peak,

    M = 72·B·s·L·h² (1 + s/6h + V/12hL)

The papers' models have as many heads of keys as of queries, H·Q = h and no SwiGLU. The general forms below let a token
meet, in each of L layers, projections of h·d·(2a + 2k) weights and an MLP of g·h·f, or a router of E·h and K such
experts. A weight takes 6 FLOPs a token, 8 if its layer is recomputed. Attention takes 4·a·d·s forward, and twice that
backward.

    B, b batch   s, T sequence   h hidden   l, L layers   V vocabulary   a, H query heads   k key heads   d, Q of a head
    f width of an MLP or expert   g its matrices: 3 for SwiGLU, else 2   E experts   K of them a token
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.spec import Function, Topology, Workload


def kaplan(n: int) -> int:
    """C, a token."""
    return 6 * n


def palm(n: int, layers: int, heads: int, width: int, length: int) -> int:
    """C, a token, in PaLM's letters N, L, H, Q, T."""
    return 6 * n + 12 * layers * heads * width * length


def narayanan(b: int, s: int, layers: int, h: int, v: int) -> int:
    """F, a step, with its bracket multiplied out."""
    return 96 * b * s * layers * h**2 + 16 * b * s**2 * layers * h + 6 * b * s * h * v


def korthikanti(b: int, s: int, layers: int, h: int, v: int) -> int:
    """M, a step, with its bracket multiplied out."""
    return 72 * b * s * layers * h**2 + 12 * b * s**2 * layers * h + 6 * b * s * h * v


class Weights(NamedTuple):
    """The elements of the matrices that a token is multiplied with, by part; ``norms``: the other parameters."""

    projections: int
    mlp: int
    router: int
    head: int
    norms: int


def weights(x: Mapping[str, Any]) -> Weights:
    layers, h, d = x["num_hidden_layers"], x["hidden_size"], x["head_dim"]
    a, k, g = x["num_attention_heads"], x["num_key_value_heads"], x["mlp_matrices"]
    projections = layers * h * d * (2 * a + 2 * k)
    if "num_experts" in x:
        mlp = layers * x["num_experts_per_tok"] * g * h * x["moe_intermediate_size"]
        router = layers * h * x["num_experts"]
    else:
        mlp, router = layers * g * h * x["intermediate_size"], 0
    norms = layers * (2 * h + 2 * d) + h  # before both halves of a layer, of queries and keys, before the head
    return Weights(projections, mlp, router, x["vocab_size"] * h, norms)


def attention(x: Mapping[str, Any]) -> int:
    """QKᵀ and PV forward, a token."""
    return 4 * x["num_hidden_layers"] * x["num_attention_heads"] * x["head_dim"] * x["sequence_length"]


# Of attention's two products forward: how often both are computed in a step, in halves.
HALVES = {"whole": 6, "grouped": 6, "causal": 3, "flash": 7, "selective": 8, "recomputed": 8}


def build(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    def flops(x: Mapping[str, Any]) -> dict[str, int]:
        tokens, w = x["batch_size"] * x["sequence_length"], weights(x)
        if count == "six_n":
            return {"total": tokens * kaplan(sum(w))}
        each = 8 if count == "recomputed" else 6  # a weight of a layer: 2 forward, 2 again, 4 backward
        found = {
            "projections": tokens * each * w.projections,
            "scores": tokens * HALVES[count] * attention(x) // 2,
            "mlp": tokens * each * w.mlp,
            "router": tokens * each * w.router,
            "head": tokens * 6 * w.head,
        }
        total = {"total": sum(found.values())}
        return {**found, **total} if parts else total

    return flops
