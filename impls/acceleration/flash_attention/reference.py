"""Exact attention in tiles: FlashAttention-2 (Dao 2023, arXiv:2307.08691), forward (algorithm 1) and backward
(algorithm 2), in plain PyTorch. FlashAttention's first loop order is beside it, in fa1.py.

    S = τ Q Kᵀ,   P = softmax(S) along each row,   O = P V

The naive form writes the s × s matrices S and P to memory and keeps P for the backward pass. The tiled form walks over
blocks of keys with a running maximum and a running sum (the online softmax), keeps one number per row, L = log Σ exp S,
and recomputes each tile of P in the backward pass as exp(S − L): memory linear in s. Numbers are the paper's lines; the
paper has one head, this code computes all heads at once.

    b     batch size                         h     heads of Q: h_k of K and V × g queries for each (GQA)
    s     length: of queries, t of keys      d     head dimension
    B_r   rows (queries) of a block          B_c   columns (keys) of a block        τ   softmax scale 1/√d
    m ℓ   maximum and sum of exponentials of a row so far                           D   rowsum(dO ∘ O)

Not in the paper: masks and capped scores (rules.py), packed documents, each an attention of its own, and sinks: learned
scores, one of each head, that every query sees and whose value is 0 (gpt-oss).
"""

from collections.abc import Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.spec import Function, Topology, Workload
from impls.acceleration.flash_attention import fa1
from impls.acceleration.flash_attention.rules import PLAIN, Rules
from impls.acceleration.flash_attention.tiles import blocks, documents, grouped, load, store

B_R, B_C = 128, 128


def naive(query: Tensor, key: Tensor, value: Tensor, rules: Rules = PLAIN, sinks: Tensor | None = None) -> Tensor:
    """Standard attention (section 2.2) in the inputs' dtype: query [b, h, s, d], key and value [b, h_k, t, d],
    sinks [h] → [b, h, s, d]."""
    (s, d), t = query.shape[2:], key.shape[2]
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))  # [b, h, t, d]
    scores = rules.capped(query @ key.transpose(-2, -1) * d**-0.5)  # [b, h, s, t]
    unseen = ~rules.mask(s, t).seen(*(torch.arange(n, device=query.device) for n in (s, t)))  # [s, t]
    scores = scores.masked_fill(unseen, -inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:3], 1)], -1)  # [b, h, s, t + 1]
    weights = scores.softmax(-1)[..., :t].masked_fill(unseen, 0.0)  # a row that sees nothing has NaN
    return weights @ value  # [b, h, s, d]


def forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, o: Tensor, lse: Tensor, rules: Rules) -> None:
    """Algorithm 1: q [b, h_k, g, s, d], k and v [b, h_k, 1, t, d], sinks [h_k, g, 1, 1] → o [b, h_k, g, s, d] and
    lse [b, h_k, g, s, 1]."""
    tau, mask = q.shape[-1] ** -0.5, rules.mask(q.shape[-2], k.shape[-2])
    for rows in blocks(q.shape[-2], B_R):  # 3
        q_i = load(q, rows)  # 4: [b, h_k, g, B_r, d]
        o_i = torch.zeros_like(q_i)  # 5
        m_i = sinks.to(q_i.dtype).expand_as(q_i[..., :1])  # [b, h_k, g, B_r, 1]: −∞ without a sink
        l_i = (m_i > -inf).to(q_i.dtype)  # the sink's exp(m − m), or 0
        for columns in blocks(k.shape[-2], B_C):  # 6
            if mask.hides(rows, columns):
                continue
            k_j, v_j = load(k, columns), load(v, columns)  # 7: [b, h_k, 1, B_c, d]
            s_ij = mask.masked(rules.capped(tau * q_i @ k_j.mT), rows, columns)  # 8: [b, h_k, g, B_r, B_c]
            m_before, m_i = m_i, torch.maximum(m_i, s_ij.amax(-1, keepdim=True))  # 9
            m = m_i.clamp(min=torch.finfo(m_i.dtype).min)  # finite where a row has seen nothing yet
            p_ij = (s_ij - m).exp()  # [b, h_k, g, B_r, B_c], not yet divided by its sum
            l_i = (m_before - m).exp() * l_i + p_ij.sum(-1, keepdim=True)
            o_i = (m_before - m).exp() * o_i + p_ij @ v_j  # 10
        empty = l_i == 0  # a row that sees nothing: O = 0, and L = ∞ makes P = 0 in the backward pass
        store(o, rows, o_i / l_i.masked_fill(empty, 1.0))  # 12, 14
        store(lse, rows, (m_i + l_i.log()).masked_fill(empty, inf))  # 13, 15


def backward(*tensors: Tensor, rules: Rules) -> None:
    """Algorithm 2: q, k, v, o, lse and do → dq, which is zero before, dk and dv; shapes as above."""
    q, k, v, o, lse, do, dq, dk, dv = tensors
    tau, mask = q.shape[-1] ** -0.5, rules.mask(q.shape[-2], k.shape[-2])
    delta = row_products(do, o)  # 4: D [b, h_k, g, s, 1]
    for columns in blocks(k.shape[-2], B_C):  # 5
        k_j, v_j = load(k, columns), load(v, columns)  # 6: [b, h_k, 1, B_c, d]
        dk_j, dv_j = torch.zeros_like(k_j), torch.zeros_like(v_j)  # 7
        for rows in blocks(q.shape[-2], B_R):  # 8
            if mask.hides(rows, columns):
                continue
            q_i, do_i = load(q, rows), load(do, rows)  # 9: [b, h_k, g, B_r, d]
            l_i, d_i = load(lse, rows), load(delta, rows)  # [b, h_k, g, B_r, 1]
            s_ij = rules.capped(tau * q_i @ k_j.mT)  # 10: [b, h_k, g, B_r, B_c]
            p_ij = (mask.masked(s_ij, rows, columns) - l_i).exp()  # 11
            dv_j += (p_ij.mT @ do_i).sum(2, keepdim=True)  # 12: over the g queries that share a key
            dp_ij = do_i @ v_j.mT  # 13: [b, h_k, g, B_r, B_c]
            ds_ij = p_ij * (dp_ij - d_i) * rules.slope(s_ij)  # 14
            store(dq, rows, load(dq, rows) + tau * ds_ij @ k_j)  # 15
            dk_j += (tau * ds_ij.mT @ q_i).sum(2, keepdim=True)  # 16
        store(dk, columns, dk_j)  # 18
        store(dv, columns, dv_j)


def row_products(do: Tensor, o: Tensor) -> Tensor:
    """D = rowsum(dO ∘ O) [..., s, 1], block by block: float32 copies of both would weigh more."""
    delta = o.new_empty((*o.shape[:-1], 1), dtype=torch.promote_types(o.dtype, torch.float32))
    for rows in blocks(o.shape[-2], B_R):
        store(delta, rows, (load(do, rows) * load(o, rows)).sum(-1, keepdim=True))
    return delta


class FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, rules: Rules = PLAIN,
        sinks: Tensor | None = None, cu_seqlens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """query [b, h, s, d], key and value [b, h_k, t, d], sinks [h], cu_seqlens [documents + 1] → [b, h, s, d]."""
        output = torch.empty_like(query, memory_format=torch.contiguous_format)  # [b, h, s, d]
        logsumexp = query.new_empty((*query.shape[:3], 1), dtype=torch.promote_types(query.dtype, torch.float32))
        q, o, lse = (grouped(x, key.shape[1]) for x in (query, output, logsumexp))
        sink = query.new_full((query.shape[1],), -inf) if sinks is None else sinks
        for at in documents(cu_seqlens):
            parts = (x[..., at, :] for x in (q, key.unsqueeze(2), value.unsqueeze(2)))
            forward(*parts, sink.view(key.shape[1], -1, 1, 1), o[..., at, :], lse[..., at, :], rules)
        ctx.save_for_backward(query, key, value, output, logsumexp, sinks, cu_seqlens)
        ctx.rules = rules
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, logsumexp, sinks, cu_seqlens = ctx.saved_tensors
        q, o, lse, do = (grouped(x, key.shape[1]) for x in (query, output, logsumexp, d_output))
        k, v = key.unsqueeze(2), value.unsqueeze(2)
        dq = torch.zeros_like(q, dtype=logsumexp.dtype)  # 3: many blocks of keys add to it
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        for at in documents(cu_seqlens):
            backward(*(x[..., at, :] for x in (q, k, v, o, lse, do, dq, dk, dv)), rules=ctx.rules)
        d_sinks = None
        if sinks is not None:  # dS = P (dP − D), and dP = 0 because the sink's value is 0
            p = (sinks[:, None, None] - logsumexp).exp()  # [b, h, s, 1]
            d_sinks = -(p * row_products(d_output, output)).sum((0, 2, 3)).to(sinks.dtype)
        return dq.flatten(1, 2).to(query.dtype), dk.squeeze(2), dv.squeeze(2), None, d_sinks, None


def build(workload: Workload, topology: Topology, outer: str = "queries", **variant: Any) -> Function:
    rules = Rules.of(**variant)

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = (inputs[name] for name in ("query", "key", "value"))
        if outer == "keys":  # FlashAttention-1
            return {"output": fa1.FlashAttention1.apply(*tensors, rules.causal)}
        return {"output": FlashAttention.apply(*tensors, rules, inputs.get("sinks"), inputs.get("cu_seqlens"))}

    return attention
