"""Exact attention in tiles: FlashAttention-2 (Dao 2023, arXiv:2307.08691), forward (algorithm 1) and backward
(algorithm 2), in plain PyTorch.

    S = τ Q Kᵀ,   P = softmax(S) along each row,   O = P V

The naive form writes the s × s matrices S and P to memory and keeps P for the backward pass. The tiled form walks over
blocks of keys with a running maximum and a running sum (the online softmax), keeps one number a row, L = log Σ exp S,
and computes each tile of P anew in the backward pass as exp(S − L): memory linear in s.

b       batch size                               τ     softmax scale 1/√d
h, h_k  heads of Q, heads of K and V             g     h / h_k, queries that share a key head (GQA)
s, d    sequence length, head dimension          r c   rows and columns of a tile
Q O     [s, d]  of one head                      m l   [r]     row_max and row_sum so far
K V     [s, d]  of the key head that it shares   L D   [s]     log-sum-exp; rowsum(dO ∘ O)
S P     [r, c]  one tile

No key is ever repeated for the queries that share it. Exponentials are powers of two, as in the authors' kernels: K
holds τ log₂ e, and L is a logarithm to base 2. Tiles are computed in float32 at least, as tensor cores accumulate;
inputs, outputs and what is kept have the inputs' dtype, L excepted.
"""

from collections.abc import Mapping
from math import e, inf, log2

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.spec import Function, Topology, Workload

LOG2_E = log2(e)
# Rows and columns of a tile, 512 KiB of float32 at most, what a core's own cache holds. Full attention takes all tiles;
# causal attention leaves out those above the diagonal (section 3.1):
#
#     ■ ■ ■      ◣ · ·    ◣ masked element by element
#     ■ ■ ■      ■ ◣ ·    · skipped
#     ■ ■ ■      ■ ■ ◣
FULL, CAUSAL = (1024, 128), (256, 256)

Blocks = list[tuple[Tensor, ...]]


def split(size: int, *tensors: Tensor) -> list[Blocks]:
    """tensors [heads, s, …] → of each head their blocks of ``size`` positions, side by side."""
    blocks = zip(*(x.split(size, dim=1) for x in tensors), strict=True)
    of_heads = (zip(*(x.unbind() for x in block), strict=True) for block in blocks)
    return [list(of_head) for of_head in zip(*of_heads, strict=True)]


def forward_of_rows(q_i: Tensor, keys: Blocks, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """One pass over the keys → O_i, divided by its sum once at the end, and L_i. ``keys`` holds (τ log₂ e K_jᵀ, V_j,
    ones to sum by); the mask is added to the last of them."""
    total, m, row_sum = torch.zeros_like(q_i), q_i.new_full((len(q_i), 1), -inf), q_i.new_zeros(len(q_i))
    for j, (k_j, v_j, ones_j) in enumerate(keys):
        s = q_i @ k_j
        if mask is not None and j == len(keys) - 1:
            s.add_(mask[: len(s), : len(s)])
        m, before = torch.maximum(m, s.amax(-1, keepdim=True)), m
        rescale = torch.exp2(before - m)
        p = s.sub_(m).exp2_()
        row_sum.mul_(rescale.squeeze(-1)).addmv_(p, ones_j)
        total.mul_(rescale).addmm_(p, v_j)
        del s, p  # before there is another tile
    return total.div_(row_sum[:, None]), row_sum.log2_().add_(m.squeeze(-1))


def backward_of_a_head(rows: Blocks, keys: Blocks, causal: bool) -> None:
    """For each block of keys one pass over the rows, P computed anew and dS = P ∘ (dO Vᵀ − D); dQ log₂ e, dK / τ and
    dV are added up in place. Tiles are transposed here, and so lies dQ in memory: products read along rows."""
    for j, (k_j, v_j, d_k_j, d_v_j) in enumerate(keys):
        for i, (q_i, d_o_i, minus_l_i, minus_d_i, d_q_i) in enumerate(rows):
            if causal and i < j:
                continue
            p = torch.addmm(minus_l_i, k_j, q_i.T).exp2_()
            if causal and i == j:
                p.triu_()  # no key that comes after its query
            d_v_j.addmm_(p, d_o_i)
            d_s = torch.addmm(minus_d_i, v_j, d_o_i.T).mul_(p)
            d_k_j.addmm_(d_s, q_i)
            d_q_i.addmm_(d_s.T, k_j)
            del p, d_s  # before there is another tile


class FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """Algorithm 1, a head at a time."""
        group, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5 * LOG2_E
        rows, columns = CAUSAL if causal else FULL
        output = query.new_empty(query.shape)
        logsumexp = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        future = logsumexp.new_full((columns, columns), -inf).triu_(1) if causal else None
        q, k, v, o, lse = (x.flatten(0, 1) for x in (query, key, value, output, logsumexp))
        heads = split(rows, q, o, lse)
        for pair in range(len(k)):
            k_h, v_h = (x[pair].to(lse.dtype) for x in (k, v))
            k_h, ones = k_h * scale, torch.ones_like(k_h[:, 0])
            keys = list(zip(k_h.T.split(columns, dim=1), v_h.split(columns), ones.split(columns), strict=True))
            for of_head in heads[pair * group : (pair + 1) * group]:
                for i, (q_i, o_i, lse_i) in enumerate(of_head):
                    seen = keys[: i + 1] if causal else keys
                    o_i[:], lse_i[:] = forward_of_rows(q_i.to(lse.dtype), seen, future)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.causal = causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Algorithm 2, a head at a time."""
        query, key, value, output, logsumexp = ctx.saved_tensors
        group, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5 * LOG2_E
        rows, columns = CAUSAL if ctx.causal else FULL
        d_query, d_key, d_value = (x.new_empty(x.shape) for x in (query, key, value))
        k, v, lse, d_k, d_v = (x.flatten(0, 1) for x in (key, value, logsumexp, d_key, d_value))
        heads = split(rows, *(x.flatten(0, 1) for x in (query, d_output, output, logsumexp, d_query)))
        for pair in range(len(k)):
            k_h, v_h = (x[pair].to(lse.dtype) for x in (k, v))
            k_h = k_h * scale
            d_k_h, d_v_h = torch.zeros_like(k_h), torch.zeros_like(v_h)
            keys = list(zip(*(x.split(columns) for x in (k_h, v_h, d_k_h, d_v_h)), strict=True))
            for of_head in heads[pair * group : (pair + 1) * group]:
                of_rows = []
                for q_i, d_o_i, o_i, lse_i, _ in of_head:
                    q_i, d_o_i, total = q_i.to(lse.dtype), d_o_i.to(lse.dtype), lse.new_zeros(q_i.shape[::-1]).T
                    of_rows.append((q_i, d_o_i, -lse_i, -(d_o_i * o_i).sum(-1), total))
                backward_of_a_head(of_rows, keys, ctx.causal)
                for (*_, d_q_i), (*_, total) in zip(of_head, of_rows, strict=True):
                    d_q_i[:] = total.mul_(1 / LOG2_E)
            d_k[pair], d_v[pair] = d_k_h.mul_(scale / LOG2_E), d_v_h
        return d_query, d_key, d_value, None


def build(workload: Workload, topology: Topology, causal: bool) -> Function:
    """{"query": [b, h, s, d], "key": [b, h_k, s, d], "value": [b, h_k, s, d]} → {"output": [b, h, s, d]}."""

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"output": FlashAttention.apply(inputs["query"], inputs["key"], inputs["value"], causal)}

    return attention
