"""Exact attention in tiles: FlashAttention-2 (Dao 2023, arXiv:2307.08691), forward (algorithm 1) and backward
(algorithm 2), in plain PyTorch.

    S = τ Q Kᵀ,   P = softmax(S) along each row,   O = P V

The naive form writes the s × s matrices S and P to memory and keeps P for the backward pass. The tiled form walks over
blocks of keys with a running maximum and a running sum (the online softmax), keeps one number a row, L = log Σ exp S,
and computes each tile of P anew in the backward pass as exp(S − L): memory linear in s.

b       batch size                               τ     softmax scale 1/√d
h, h_k  heads of Q, heads of K and V             g     h / h_k, queries that share a key head (GQA)
s, d    sequence length, head dimension          n     b · h_k, the batch of every product below
Q O     [n, s·g, d]  row position·g + member     m l   [n, B_r·g, 1]  row_max and row_sum so far, of a block
K V     [n, s, d]                                L D   [n, s·g, 1]    log-sum-exp; rowsum(dO ∘ O)
S P     [n, B_r·g, B_c]  one tile                B     rows and columns of a tile, B_r = B_c

The g queries of a key head are rows of the same product, so no key is ever repeated. Tiles are computed in float32 at
least, as tensor cores accumulate; inputs, outputs and what is kept have the inputs' dtype, L excepted.
"""

from collections.abc import Mapping
from math import inf, isqrt

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.spec import Function, Topology, Workload

TILE_ELEMENTS = 2**19  # of all b·h tiles together: 2 MiB of float32, about what a core's own cache holds


def naive(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Standard attention (section 2.2), in the inputs' dtype. query [b, h, s, d], key and value [b, h_k, s, d]."""
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if causal:
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -inf)
    return scores.softmax(-1) @ value


def to_rows(x: Tensor, kv_heads: int) -> Tensor:
    """[b, h, s, d] → [b·h_k, s·g, d]; a view where g = 1."""
    return x.unflatten(1, (kv_heads, -1)).transpose(2, 3).reshape(len(x) * kv_heads, -1, x.shape[-1])


def to_heads(x: Tensor, like: Tensor, kv_heads: int) -> Tensor:
    """[b·h_k, s·g, d] → [b, h, s, d], in the dtype of ``like``."""
    batch, heads, length, _ = like.shape
    x = x.to(like.dtype).view(batch, kv_heads, length, heads // kv_heads, -1)
    return x.transpose(2, 3).reshape(like.shape)


def blocks(length: int, heads: int) -> list[slice]:
    """Positions 0 … length − 1 in blocks of B, the last one perhaps shorter.

    B is the largest power of two for which heads · B² ≤ TILE_ELEMENTS, within 32 and 512: below that the calls cost
    more than the arithmetic. Full attention takes all T² tiles; causal attention leaves out those above the diagonal
    (section 3.1):

        ■ ■ ■      ◣ · ·    ◣ rows = columns: masked element by element
        ■ ■ ■      ■ ◣ ·    · skipped: T (T + 1) / 2 are left
        ■ ■ ■      ■ ■ ◣
    """
    size = min(max(1 << isqrt(TILE_ELEMENTS // heads).bit_length() >> 1, 32), 512)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def future(block: slice, group: int, device: torch.device) -> Tensor:
    """[B·g, B], true where a key comes after its query, for a tile on the diagonal."""
    size = block.stop - block.start
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1).repeat_interleave(group, 0)


class FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """Algorithm 1: for each block of rows, one pass over the keys, divided by its sum once at the end."""
        kv_heads, group = key.shape[1], query.shape[1] // key.shape[1]
        compute = torch.promote_types(query.dtype, torch.float32)
        q, k, v = to_rows(query, kv_heads), key.flatten(0, 1), value.flatten(0, 1)
        o, logsumexp = torch.empty_like(q), q.new_empty(*q.shape[:2], 1, dtype=compute)
        all_blocks = blocks(key.shape[2], len(q) * group)
        for i, positions in enumerate(all_blocks):
            rows = slice(positions.start * group, positions.stop * group)
            q_i = q[:, rows].to(compute) * q.shape[-1] ** -0.5
            o_i = torch.zeros_like(q_i)
            row_max = o_i.new_full((*o_i.shape[:2], 1), -inf)
            row_sum = torch.zeros_like(row_max)
            for columns in all_blocks[: i + 1] if causal else all_blocks:
                s = q_i @ k[:, columns].to(compute).transpose(1, 2)
                if causal and columns == positions:
                    s.masked_fill_(future(columns, group, s.device), -inf)
                old_max, row_max = row_max, torch.maximum(row_max, s.amax(-1, keepdim=True))
                p = s.sub_(row_max).exp_()
                rescale = (old_max - row_max).exp_()
                row_sum.mul_(rescale).add_(p.sum(-1, keepdim=True))
                o_i.mul_(rescale).baddbmm_(p, v[:, columns].to(compute))
            o[:, rows] = o_i.div_(row_sum)
            logsumexp[:, rows] = row_sum.log_().add_(row_max)
        output = to_heads(o, query, kv_heads)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.causal = causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Algorithm 2: for each block of keys, one pass over the rows, P recomputed; dS = P ∘ (dO Vᵀ − D)."""
        query, key, value, output, logsumexp = ctx.saved_tensors
        kv_heads, group, scale = key.shape[1], query.shape[1] // key.shape[1], query.shape[-1] ** -0.5
        compute = logsumexp.dtype
        q, k, v = to_rows(query, kv_heads), key.flatten(0, 1), value.flatten(0, 1)
        d_o, minus_l = to_rows(d_output, kv_heads), -logsumexp
        minus_d = to_rows((d_output.to(compute) * output).sum(-1, keepdim=True), kv_heads).neg_()
        d_q, d_k, d_v = torch.zeros_like(q, dtype=compute), torch.empty_like(k), torch.empty_like(v)
        all_blocks = blocks(key.shape[2], len(q) * group)
        for j, columns in enumerate(all_blocks):
            k_j, v_j = k[:, columns].to(compute), v[:, columns].to(compute)
            d_k_j, d_v_j = torch.zeros_like(k_j), torch.zeros_like(v_j)
            for positions in all_blocks[j:] if ctx.causal else all_blocks:
                rows = slice(positions.start * group, positions.stop * group)
                q_i, d_o_i = q[:, rows].to(compute) * scale, d_o[:, rows].to(compute)
                p = torch.baddbmm(minus_l[:, rows], q_i, k_j.transpose(1, 2)).exp_()
                if ctx.causal and columns == positions:
                    p.masked_fill_(future(columns, group, p.device), 0)
                d_v_j.baddbmm_(p.transpose(1, 2), d_o_i)
                d_s = torch.baddbmm(minus_d[:, rows], d_o_i, v_j.transpose(1, 2)).mul_(p)
                d_q[:, rows].baddbmm_(d_s, k_j, alpha=scale)
                d_k_j.baddbmm_(d_s.transpose(1, 2), q_i)
            d_k[:, columns], d_v[:, columns] = d_k_j, d_v_j
        return to_heads(d_q, query, kv_heads), d_k.view_as(key), d_v.view_as(value), None


def build(workload: Workload, topology: Topology, causal: bool) -> Function:
    """{"query": [b, h, s, d], "key": [b, h_k, s, d], "value": [b, h_k, s, d]} → {"output": [b, h, s, d]}."""

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"output": FlashAttention.apply(inputs["query"], inputs["key"], inputs["value"], causal)}

    return attention
