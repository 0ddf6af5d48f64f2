"""Exact attention in tiles: FlashAttention-2 (Dao 2023, arXiv:2307.08691), forward (algorithm 1) and backward
(algorithm 2), in plain PyTorch.

    S = τ Q Kᵀ,   P = softmax(S) along each row,   O = P V

The naive form writes the s × s matrices S and P to memory and keeps P for the backward pass. The tiled form walks over
blocks of keys with a running maximum and a running sum (the online softmax), keeps one number a row, L = log Σ exp S,
and computes each tile of P anew in the backward pass as exp(S − L): memory linear in s.

b       batch size                               τ     softmax scale 1/√d
h, h_k  heads of Q, heads of K and V             g     h / h_k, queries that share a key head (GQA)
s, d    sequence length, head dimension          n     pairs of sequence and key head that are computed at once
Q O     [b·h_k, g, s, d]  views of [b, h, s, d]  m l   [n, g·B, 1]     row_max and row_sum so far, of a block
K V     [b·h_k, s, d]                            L D   [b·h_k, g, s]   log-sum-exp; rowsum(dO ∘ O)
S P     [n, g·B, B]  one tile

The g queries of a key head are rows of the same product, so no key is ever repeated. Exponentials are powers of two, as
in the authors' kernels: τ holds log₂ e besides, and L is a logarithm to base 2. Tiles are computed in float32 at
least, as tensor cores accumulate; inputs, outputs and what is kept have the inputs' dtype, L excepted.
"""

from collections.abc import Mapping
from math import e, inf, isqrt, log2

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.spec import Function, Topology, Workload

LOG2_E = log2(e)
TILE = 2**17  # elements of S at once: 512 KiB of float32, of which a core's own cache holds two


def naive(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Standard attention (section 2.2), in the inputs' dtype. query [b, h, s, d], key and value [b, h_k, s, d]."""
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if causal:
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -inf)
    return scores.softmax(-1) @ value


def pieces(total: int, size: int) -> list[slice]:
    """0 … total − 1 in runs of ``size``, the last one perhaps shorter."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def by_key_head(x: Tensor, group: int) -> Tensor:
    """[b, h, s, d] as [b·h_k, g, s, d]: the queries that share a key head side by side. A view where it can be."""
    return x.unflatten(1, (-1, group)).flatten(0, 1)


def tiling(pairs: int, group: int, length: int) -> tuple[list[slice], list[slice]]:
    """Runs of heads, and blocks of B positions: short sequences fill a tile with heads, long ones with positions.

    Full attention takes all T² tiles; causal attention leaves out those above the diagonal (section 3.1):

        ■ ■ ■      ◣ · ·    ◣ rows = columns: masked element by element
        ■ ■ ■      ■ ◣ ·    · skipped: T (T + 1) / 2 are left
        ■ ■ ■      ■ ■ ◣
    """
    size = max(1, min(length, isqrt(TILE // group)))
    return pieces(pairs, max(1, TILE // (group * size**2))), pieces(length, size)


def future(tile: Tensor) -> Tensor:
    """[B, B], true where a key comes after its query, for a tile on the diagonal."""
    size = min(tile.shape[1:])
    return torch.ones(size, size, dtype=torch.bool, device=tile.device).triu_(1)


class FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """Algorithm 1: for each block of rows one pass over the keys, divided by its sum once at the end."""
        group, tau = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5 * LOG2_E
        output = query.new_empty(query.shape)
        q, o = by_key_head(query, group), by_key_head(output, group)
        logsumexp = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        runs, blocks = tiling(*q.shape[:3])
        for heads in runs:
            k, v = (x.flatten(0, 1)[heads].to(logsumexp.dtype) for x in (key, value))
            k_v = [(k[:, columns].mT, v[:, columns]) for columns in blocks]
            for i, rows in enumerate(blocks):
                q_i = q[heads, :, rows].flatten(1, 2).to(k.dtype) * tau
                o_i, row_max, row_sum = torch.zeros_like(q_i), q_i.new_full((*q_i.shape[:2], 1), -inf), 0.0
                for j, (k_j, v_j) in enumerate(k_v[: i + 1] if causal else k_v):
                    s = q_i @ k_j
                    if causal and j == i:
                        s.unflatten(1, (group, -1)).masked_fill_(future(s), -inf)
                    old_max, row_max = row_max, torch.maximum(row_max, s.amax(-1, keepdim=True))
                    p = s.sub_(row_max).exp2_()
                    rescale = (old_max - row_max).exp2_()
                    row_sum = p.sum(-1, keepdim=True).add_(rescale * row_sum)
                    o_i.mul_(rescale).baddbmm_(p, v_j)
                    del s, p  # before there is another tile
                o[heads, :, rows] = o_i.div_(row_sum).unflatten(1, (group, -1))
                logsumexp[heads, :, rows] = row_sum.log2_().add_(row_max).view(len(k), group, -1)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.causal = causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Algorithm 2: for each block of keys one pass over the rows, P computed anew and dS = P ∘ (dO Vᵀ − D). Tiles
        are transposed here: every product then reads along their rows."""
        query, key, value, output, logsumexp = ctx.saved_tensors
        group, tau, compute = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5 * LOG2_E, logsumexp.dtype
        d_query, d_key, d_value = (x.new_empty(x.shape) for x in (query, key, value))
        q, o, d_o, d_q = (by_key_head(x, group) for x in (query, output, d_output, d_query))
        runs, blocks = tiling(*q.shape[:3])
        for heads in runs:
            k, v = (x.flatten(0, 1)[heads].to(compute) for x in (key, value))
            minus_l = [-logsumexp[heads, :, rows].flatten(1).unsqueeze(1) for rows in blocks]
            product = (d_o[heads, :, rows].to(compute) * o[heads, :, rows] for rows in blocks)
            minus_d = [-x.sum(-1).flatten(1).unsqueeze(1) for x in product]
            d_q_b = [k.new_zeros(len(k), k.shape[2], x.shape[2]) for x in minus_l]  # transposed too
            for j, columns in enumerate(blocks):
                k_j, v_j = k[:, columns], v[:, columns]
                d_k_j, d_v_j = torch.zeros_like(k_j), torch.zeros_like(v_j)
                for i, rows in enumerate(blocks):
                    if ctx.causal and i < j:
                        continue
                    q_i, d_o_i = (x[heads, :, rows].flatten(1, 2).to(compute) for x in (q, d_o))
                    p = torch.baddbmm(minus_l[i], k_j, q_i.mT, alpha=tau).exp2_()
                    if ctx.causal and i == j:
                        p.unflatten(2, (group, -1)).masked_fill_(future(p).T.unsqueeze(1), 0)
                    d_v_j.baddbmm_(p, d_o_i)
                    d_s = torch.baddbmm(minus_d[i], v_j, d_o_i.mT).mul_(p)
                    d_q_b[i].baddbmm_(k_j.mT, d_s)
                    d_k_j.baddbmm_(d_s, q_i)
                    del p, d_s  # before there is another tile
                d_key.flatten(0, 1)[heads, columns] = d_k_j.mul_(tau / LOG2_E)
                d_value.flatten(0, 1)[heads, columns] = d_v_j
            for rows, d_q_i in zip(blocks, d_q_b, strict=True):
                d_q[heads, :, rows] = d_q_i.mul_(tau / LOG2_E).mT.unflatten(1, (group, -1))
        return d_query, d_key, d_value, None


def build(workload: Workload, topology: Topology, causal: bool) -> Function:
    """{"query": [b, h, s, d], "key": [b, h_k, s, d], "value": [b, h_k, s, d]} → {"output": [b, h, s, d]}."""

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"output": FlashAttention.apply(inputs["query"], inputs["key"], inputs["value"], causal)}

    return attention
