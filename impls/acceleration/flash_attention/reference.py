"""Exact attention in tiles: FlashAttention-2 (Dao 2023, arXiv:2307.08691), forward (algorithm 1) and backward
(algorithm 2), in plain PyTorch.

    S = τ Q Kᵀ,   P = softmax(S) along each row,   O = P V

The naive form writes the s × s matrices S and P to memory and keeps P for the backward pass. The tiled form walks over
blocks of keys with a running maximum and a running sum (the online softmax), keeps one number per row, L = log Σ exp S,
and recomputes each tile of P in the backward pass as exp(S − L): memory linear in s.

Lines of the algorithms are numbered as in the paper; the paper has one head, this code computes all heads at once.

    b     batch size                         h     heads of Q: h_k of K and V × g queries for each (GQA)
    s     sequence length                    d     head dimension
    B_r   rows (queries) of a block          B_c   columns (keys) of a block        τ   softmax scale 1/√d
    m ℓ   maximum and sum of exponentials of a row so far                           D   rowsum(dO ∘ O)

Causal attention leaves out the tiles above the diagonal (section 3.1):

    ■ ■ ■      ◣ · ·    ◣ masked element by element
    ■ ■ ■      ■ ◣ ·    · skipped
    ■ ■ ■      ■ ■ ◣

Tiles are computed at least in float32, as tensor cores accumulate; inputs, outputs and saved tensors have the inputs'
dtype, except L.
"""

from collections.abc import Iterator, Mapping
from math import inf

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.spec import Function, Topology, Workload

B_R, B_C = 128, 128


def naive(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Standard attention (section 2.2) in the inputs' dtype: query [b, h, s, d], key and value [b, h_k, s, d] →
    [b, h, s, d]."""
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))  # [b, h, s, d]
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # [b, h, s, s]
    if causal:
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)  # [s, s]
        scores = scores.masked_fill(future, -inf)
    return scores.softmax(-1) @ value  # [b, h, s, d]


def blocks(length: int, size: int) -> Iterator[slice]:
    """The positions of one block after another; the last may be shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def skipped(rows: slice, columns: slice, causal: bool) -> bool:
    """Whether every key of the tile comes after every query."""
    return causal and columns.start >= rows.stop


def masked(s_ij: Tensor, rows: slice, columns: slice, causal: bool) -> Tensor:
    """A tile of S [..., B_r, B_c], −∞ where the key comes after the query. Below the diagonal there are no such
    keys."""
    if not causal or columns.stop <= rows.start + 1:
        return s_ij
    queries, keys = (torch.arange(x.start, x.stop, device=s_ij.device) for x in (rows, columns))
    return s_ij.masked_fill(keys > queries[:, None], -inf)


class FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """Algorithm 1: query [b, h, s, d], key and value [b, h_k, s, d] → [b, h, s, d]."""
        tau, wide, length = query.shape[-1] ** -0.5, torch.promote_types(query.dtype, torch.float32), query.shape[2]
        output = torch.empty_like(query, memory_format=torch.contiguous_format)  # [b, h, s, d]
        logsumexp = query.new_empty(query.shape[:3], dtype=wide)  # [b, h, s]
        q, o, lse = (x.unflatten(1, (key.shape[1], -1)) for x in (query, output, logsumexp))  # [b, h_k, g, s, …]
        k, v = key.unsqueeze(2), value.unsqueeze(2)  # [b, h_k, 1, s, d]
        for rows in blocks(length, B_R):  # 3
            q_i = q[:, :, :, rows].to(wide)  # 4: [b, h_k, g, B_r, d]
            o_i = torch.zeros_like(q_i)  # 5
            l_i = torch.zeros_like(q_i[..., :1])  # [b, h_k, g, B_r, 1]
            m_i = torch.full_like(l_i, -inf)
            for columns in blocks(length, B_C):  # 6
                if skipped(rows, columns, causal):
                    break
                k_j, v_j = k[:, :, :, columns].to(wide), v[:, :, :, columns].to(wide)  # 7: [b, h_k, 1, B_c, d]
                s_ij = masked(tau * q_i @ k_j.mT, rows, columns, causal)  # 8: [b, h_k, g, B_r, B_c]
                m_before, m_i = m_i, torch.maximum(m_i, s_ij.amax(-1, keepdim=True))  # 9
                p_ij = (s_ij - m_i).exp()  # [b, h_k, g, B_r, B_c], not yet divided by its sum
                l_i = (m_before - m_i).exp() * l_i + p_ij.sum(-1, keepdim=True)
                o_i = (m_before - m_i).exp() * o_i + p_ij @ v_j  # 10
            o[:, :, :, rows] = o_i / l_i  # 12, 14
            lse[:, :, :, rows] = (m_i + l_i.log()).squeeze(-1)  # 13, 15
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.causal = causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Algorithm 2."""
        query, key, value, output, logsumexp = ctx.saved_tensors
        tau, wide, length = query.shape[-1] ** -0.5, logsumexp.dtype, query.shape[2]
        q, o, do, lse = (x.unflatten(1, (key.shape[1], -1)) for x in (query, output, d_output, logsumexp))
        k, v = key.unsqueeze(2), value.unsqueeze(2)  # [b, h_k, 1, s, d]
        dq = torch.zeros_like(q, dtype=wide)  # 3: [b, h_k, g, s, d]
        dk, dv = torch.empty_like(key), torch.empty_like(value)  # [b, h_k, s, d]
        delta = (do.to(wide) * o).sum(-1, keepdim=True)  # 4: D [b, h_k, g, s, 1]
        for columns in blocks(length, B_C):  # 5
            k_j, v_j = k[:, :, :, columns].to(wide), v[:, :, :, columns].to(wide)  # 6: [b, h_k, 1, B_c, d]
            dk_j, dv_j = torch.zeros_like(k_j.squeeze(2)), torch.zeros_like(v_j.squeeze(2))  # 7: [b, h_k, B_c, d]
            for rows in blocks(length, B_R):  # 8
                if skipped(rows, columns, ctx.causal):
                    continue
                q_i, do_i = q[:, :, :, rows].to(wide), do[:, :, :, rows].to(wide)  # 9: [b, h_k, g, B_r, d]
                l_i, d_i = lse[:, :, :, rows, None], delta[:, :, :, rows]  # [b, h_k, g, B_r, 1]
                s_ij = masked(tau * q_i @ k_j.mT, rows, columns, ctx.causal)  # 10: [b, h_k, g, B_r, B_c]
                p_ij = (s_ij - l_i).exp()  # 11
                dv_j += (p_ij.mT @ do_i).sum(2)  # 12: over the g queries that share a key
                dp_ij = do_i @ v_j.mT  # 13: [b, h_k, g, B_r, B_c]
                ds_ij = p_ij * (dp_ij - d_i)  # 14
                dq[:, :, :, rows] += tau * ds_ij @ k_j  # 15
                dk_j += (tau * ds_ij.mT @ q_i).sum(2)  # 16
            dk[:, :, columns], dv[:, :, columns] = dk_j, dv_j  # 18
        return dq.flatten(1, 2).to(query.dtype), dk, dv, None


def build(workload: Workload, topology: Topology, causal: bool) -> Function:
    """{"query": [b, h, s, d], "key": [b, h_k, s, d], "value": [b, h_k, s, d]} → {"output": [b, h, s, d]}."""

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"output": FlashAttention.apply(inputs["query"], inputs["key"], inputs["value"], causal)}

    return attention
