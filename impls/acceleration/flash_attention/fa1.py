"""FlashAttention as first published (Dao et al. 2022, arXiv:2205.14135): forward (algorithm 1, with the mask of
algorithm 2) and backward (algorithm 4). The outer loop runs over blocks of keys, not of queries as in FlashAttention-2:

    for j over blocks of K, V:                   K_j and V_j are read once
        for i over blocks of Q:                  Q_i, O_i, m_i and ℓ_i are read and O_i, m_i and ℓ_i written, for each j
            O_i ← what it would be if the sequence ended with block j

So O travels between HBM and SRAM once for each block of keys, always divided by the sum so far; rows depend on each
other's order, so only heads and sequences run in parallel. FlashAttention-2 keeps O_i in SRAM until its row is done.
hbm.py counts the bytes of both. Two numbers per row, m and ℓ, are kept for the backward pass.

Lines are numbered as in the paper, letters are those of reference.py. Masks leave every query at least the first key.
"""

from math import inf

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from impls.acceleration.flash_attention.rules import Rules
from impls.acceleration.flash_attention.tiles import blocks, grouped, load, store

B_R, B_C = 128, 128


def forward(q: Tensor, k: Tensor, v: Tensor, o: Tensor, l: Tensor, m: Tensor, causal: bool) -> None:  # noqa: E741
    """Algorithm 1: q [b, h_k, g, s, d], k and v [b, h_k, 1, s, d] → o [b, h_k, g, s, d], l and m [b, h_k, g, s, 1],
    which are 0, 0 and −∞ before (line 2)."""
    tau, mask = q.shape[-1] ** -0.5, Rules(causal).mask(q.shape[-2], k.shape[-2])
    for columns in blocks(k.shape[-2], B_C):  # 5
        k_j, v_j = load(k, columns), load(v, columns)  # 6: [b, h_k, 1, B_c, d]
        for rows in blocks(q.shape[-2], B_R):  # 7
            if mask.hides(rows, columns):
                continue
            q_i, o_i, l_i, m_i = (load(x, rows) for x in (q, o, l, m))  # 8: [b, h_k, g, B_r, d or 1]
            s_ij = mask.masked(tau * q_i @ k_j.mT, rows, columns)  # 9: [b, h_k, g, B_r, B_c]
            m_ij = s_ij.amax(-1, keepdim=True).clamp(min=torch.finfo(s_ij.dtype).min)  # 10: finite, even if all is −∞
            p_ij = (s_ij - m_ij).exp()
            l_ij = p_ij.sum(-1, keepdim=True)
            m_new = torch.maximum(m_i, m_ij)  # 11
            l_new = (m_i - m_new).exp() * l_i + (m_ij - m_new).exp() * l_ij
            o_new = (l_i * (m_i - m_new).exp() * o_i + (m_ij - m_new).exp() * p_ij @ v_j) / l_new  # 12
            for x, tile in ((o, o_new), (l, l_new), (m, m_new)):  # 12, 13
                store(x, rows, tile)


def backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, l: Tensor, m: Tensor,  # noqa: E741
    do: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, causal: bool,
) -> None:  # fmt: skip
    """Algorithm 4 without dropout, with shapes as above; dq is zero (line 5)."""
    tau, mask = q.shape[-1] ** -0.5, Rules(causal).mask(q.shape[-2], k.shape[-2])
    for columns in blocks(k.shape[-2], B_C):  # 6
        k_j, v_j = load(k, columns), load(v, columns)  # 7: [b, h_k, 1, B_c, d]
        dk_j, dv_j = torch.zeros_like(k_j), torch.zeros_like(v_j)  # 8
        for rows in blocks(q.shape[-2], B_R):  # 9
            if mask.hides(rows, columns):
                continue
            q_i, o_i, do_i, l_i, m_i = (load(x, rows) for x in (q, o, do, l, m))  # 10
            s_ij = mask.masked(tau * q_i @ k_j.mT, rows, columns)  # 11, 12
            p_ij = (s_ij - m_i).exp() / l_i  # 13: [b, h_k, g, B_r, B_c]
            dv_j += (p_ij.mT @ do_i).sum(2, keepdim=True)  # 16
            dp_ij = do_i @ v_j.mT  # 17
            d_i = (do_i * o_i).sum(-1, keepdim=True)  # 19: [b, h_k, g, B_r, 1], again for each j
            ds_ij = p_ij * (dp_ij - d_i)  # 20
            store(dq, rows, load(dq, rows) + tau * ds_ij @ k_j)  # 21
            dk_j += (tau * ds_ij.mT @ q_i).sum(2, keepdim=True)  # 22
        store(dk, columns, dk_j)  # 24
        store(dv, columns, dv_j)


class FlashAttention1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """query [b, h, s, d], key and value [b, h_k, s, d] → [b, h, s, d]."""
        wide = torch.promote_types(query.dtype, torch.float32)
        output = torch.zeros_like(query, memory_format=torch.contiguous_format)  # [b, h, s, d]
        sums = query.new_zeros((*query.shape[:3], 1), dtype=wide)  # ℓ [b, h, s, 1]
        maxima = torch.full_like(sums, -inf)  # m
        q, o, l, m = (grouped(x, key.shape[1]) for x in (query, output, sums, maxima))  # noqa: E741
        forward(q, key.unsqueeze(2), value.unsqueeze(2), o, l, m, causal)
        ctx.save_for_backward(query, key, value, output, sums, maxima)
        ctx.causal = causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *rest = ctx.saved_tensors
        q, o, l, m, do = (grouped(x, key.shape[1]) for x in (query, *rest, d_output))  # noqa: E741
        k, v = key.unsqueeze(2), value.unsqueeze(2)
        dq = torch.zeros_like(q, dtype=l.dtype)
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        backward(q, k, v, o, l, m, do, dq, dk, dv, ctx.causal)
        return dq.flatten(1, 2).to(query.dtype), dk.squeeze(2), dv.squeeze(2), None
