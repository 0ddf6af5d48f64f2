# ruff: noqa: N803, N806, E741  the letters are the paper's
"""FlashAttention-2 in Triton: the forward pass, and the backward pass as two kernels: one over blocks of keys for dK
and dV, one over blocks of queries for dQ. No two programs add to one address, but S and dP are computed twice.

The letters are those of reference.py. Scores are in powers of two: P = 2^(S − L) with S and L times log₂ e. Tensors are
contiguous, [b, h, s, d] and [b, h_k, t, d]; G = h / h_k query heads share a key head. With PACKED, axis 2 of the grid
counts documents, and s and t are the lengths of one.

Each kernel's loop has three parts: tiles that a mask cuts, tiles that are whole, tiles that a mask cuts.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def scores(q, k, tau, CAP: tl.constexpr):
    """τ q kᵀ · log₂ e [B_r, B_c], capped: c · tanh(x / c) = c · (2 σ(2x / c) − 1)."""
    product = tl.dot(q, tl.trans(k), input_precision="ieee")
    if CAP > 0:
        return (CAP * LOG2_E) * (2 * tl.sigmoid(product * (2 * tau / CAP)) - 1)
    return product * (tau * LOG2_E)


@triton.jit
def seen(rows, columns, shift, t, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Mask.seen in rules.py, and whether there is such a key."""
    at = rows[:, None] + shift
    found = (columns[None, :] < t) & (rows[:, None] >= 0)
    if CAUSAL:
        found = found & (columns[None, :] <= at)
    if WINDOW > 0:
        found = found & (columns[None, :] > at - WINDOW)
    return found


@triton.jit
def matrix(base, start, length, D: tl.constexpr, B: tl.constexpr):
    """Rows ``start`` to ``start + B`` of a matrix [length, D], with 0 beyond its end."""
    rows = start + tl.arange(0, B)
    return tl.load(base + rows[:, None] * D + tl.arange(0, D)[None, :], mask=rows[:, None] < length, other=0.0)


@triton.jit
def write(base, tile, start, length, D: tl.constexpr, B: tl.constexpr):
    rows = start + tl.arange(0, B)
    place = base + rows[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(place, tile.to(base.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def keys_of(start, s, t, shift, B_R: tl.constexpr, B_C: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """For the rows from ``start``: the first key that one of them sees, the first and the end of those that all see,
    and the end of those that one of them sees; in whole blocks, but for the last."""
    first, whole, clear, end = 0, 0, (t // B_C) * B_C, t
    if CAUSAL:
        end = tl.maximum(tl.minimum(t, start + B_R + shift), 0)
        clear = (tl.maximum(tl.minimum(t, start + shift + 1), 0) // B_C) * B_C
    if WINDOW > 0:
        first = (tl.maximum(start + shift - WINDOW + 1, 0) // B_C) * B_C
        whole = (tl.maximum(start + B_R + shift - WINDOW, 0) + B_C - 1) // B_C * B_C
    first = tl.minimum(first, end)
    whole = tl.minimum(tl.maximum(whole, first), end)
    return first, whole, tl.maximum(whole, clear), end


@triton.jit
def rows_of(start, s, t, shift, B_R: tl.constexpr, B_C: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """The same for the keys from ``start``: rows that see one of them, and rows that see all."""
    first, whole, clear, end = 0, 0, (s // B_R) * B_R, s
    if CAUSAL:
        first = (tl.maximum(start - shift, 0) // B_R) * B_R
        whole = (tl.maximum(start + B_C - 1 - shift, 0) + B_R - 1) // B_R * B_R
    if WINDOW > 0:
        end = tl.maximum(tl.minimum(s, start + B_C - 1 - shift + WINDOW), 0)
        clear = (tl.maximum(tl.minimum(s, start - shift + WINDOW), 0) // B_R) * B_R
    first = tl.minimum(first, end)
    whole = tl.minimum(tl.maximum(whole, first), end)
    return first, whole, tl.maximum(whole, clear), end


@triton.jit
def document(CU, z, s, t, PACKED: tl.constexpr):
    """Where this program's document begins, and its numbers of queries and keys."""
    start = 0
    if PACKED:
        start = tl.load(CU + z)
        s = tl.load(CU + z + 1) - start
        t = s
    return start, s, t


@triton.jit
def add_tiles(
    o_i, l_i, m_i, q_i, K, V, start, begin, end, t, shift, tau,
    D: tl.constexpr, B_R: tl.constexpr, B_C: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Lines 6 to 11 of algorithm 1 for the keys from ``begin`` to ``end``."""
    rows = start + tl.arange(0, B_R)
    for j in range(begin, end, B_C):
        k_j, v_j = matrix(K, j, t, D, B_C), matrix(V, j, t, D, B_C)
        s_ij = scores(q_i, k_j, tau, CAP)
        if CUT:
            s_ij = tl.where(seen(rows, j + tl.arange(0, B_C), shift, t, CAUSAL, WINDOW), s_ij, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(s_ij, 1))
        m = tl.maximum(m_new, -3e38)  # finite where a row has seen nothing yet
        p_ij, shrink = tl.exp2(s_ij - m[:, None]), tl.exp2(m_i - m)
        l_i = shrink * l_i + tl.sum(p_ij, 1)
        o_i = tl.dot(p_ij.to(v_j.dtype), v_j, o_i * shrink[:, None], input_precision="ieee")
        m_i = m_new
    return o_i, l_i, m_i


@triton.jit
def forward(
    Q, K, V, O, L, SINKS, CU, s, t, shift, tau, H, G: tl.constexpr,
    D: tl.constexpr, B_R: tl.constexpr, B_C: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, HAS_SINKS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    start, head = tl.program_id(0) * B_R, tl.program_id(1).to(tl.int64)  # over b · h
    all_s, all_t = s, t
    at, s, t = document(CU, tl.program_id(2), s, t, PACKED)
    Q, O, L = Q + (head * all_s + at) * D, O + (head * all_s + at) * D, L + head * all_s + at
    K, V = K + (head // G * all_t + at) * D, V + (head // G * all_t + at) * D
    q_i = matrix(Q, start, s, D, B_R)
    o_i, l_i = tl.zeros([B_R, D], tl.float32), tl.zeros([B_R], tl.float32)
    m_i = tl.full([B_R], float("-inf"), tl.float32)
    if HAS_SINKS:
        l_i += 1
        m_i = tl.zeros([B_R], tl.float32) + tl.load(SINKS + head % H).to(tl.float32) * LOG2_E
    first, whole, clear, end = keys_of(start, s, t, shift, B_R, B_C, CAUSAL, WINDOW)
    o_i, l_i, m_i = add_tiles(
        o_i, l_i, m_i, q_i, K, V, start, first, whole, t, shift, tau, D, B_R, B_C, CAUSAL, WINDOW, CAP, True
    )  # fmt: skip
    o_i, l_i, m_i = add_tiles(
        o_i, l_i, m_i, q_i, K, V, start, whole, clear, t, shift, tau, D, B_R, B_C, CAUSAL, WINDOW, CAP, False
    )  # fmt: skip
    o_i, l_i, m_i = add_tiles(
        o_i, l_i, m_i, q_i, K, V, start, clear, end, t, shift, tau, D, B_R, B_C, CAUSAL, WINDOW, CAP, True
    )  # fmt: skip
    empty = l_i == 0  # rows that see nothing
    l_i = tl.where(empty, 1.0, l_i)
    write(O, o_i / l_i[:, None], start, s, D, B_R)
    rows = start + tl.arange(0, B_R)
    tl.store(L + rows, tl.where(empty, float("inf"), m_i + tl.log2(l_i)), mask=rows < s)


@triton.jit
def row_products(DO, O, DELTA, count, D: tl.constexpr, B_R: tl.constexpr):
    """D = rowsum(dO ∘ O) of ``count`` rows."""
    start = tl.program_id(0).to(tl.int64) * B_R
    rows = start + tl.arange(0, B_R)
    product = matrix(DO, start, count, D, B_R).to(tl.float32) * matrix(O, start, count, D, B_R).to(tl.float32)
    tl.store(DELTA + rows, tl.sum(product, 1), mask=rows < count)


@triton.jit
def gradients(q_i, do_i, l_i, d_i, k_j, v_j, rows, columns, t, shift, tau,
              CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, CUT: tl.constexpr):  # fmt: skip
    """Lines 10 to 14 of algorithm 2: P and dS of a tile."""
    s_ij = scores(q_i, k_j, tau, CAP)
    p_ij = tl.exp2(s_ij - l_i[:, None])
    if CUT:
        p_ij = tl.where(seen(rows, columns, shift, t, CAUSAL, WINDOW), p_ij, 0.0)
    ds_ij = p_ij * (tl.dot(do_i, tl.trans(v_j), input_precision="ieee") - d_i[:, None])
    if CAP > 0:
        ratio = s_ij * (1 / (CAP * LOG2_E))
        ds_ij = ds_ij * (1 - ratio * ratio)
    return p_ij, ds_ij


@triton.jit
def add_rows(
    dk_j, dv_j, k_j, v_j, Q, DO, L, DELTA, start, begin, end, s, t, shift, tau,
    D: tl.constexpr, B_R: tl.constexpr, B_C: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    columns = start + tl.arange(0, B_C)
    for i in range(begin, end, B_R):
        rows = i + tl.arange(0, B_R)
        q_i, do_i = matrix(Q, i, s, D, B_R), matrix(DO, i, s, D, B_R)
        l_i = tl.load(L + rows, mask=rows < s, other=float("inf"))  # beyond the end, P is 0
        d_i = tl.load(DELTA + rows, mask=rows < s, other=0.0)
        p_ij, ds_ij = gradients(q_i, do_i, l_i, d_i, k_j, v_j, rows, columns, t, shift, tau, CAUSAL, WINDOW, CAP, CUT)
        dv_j = tl.dot(tl.trans(p_ij).to(do_i.dtype), do_i, dv_j, input_precision="ieee")
        dk_j = tl.dot(tl.trans(ds_ij).to(q_i.dtype), q_i, dk_j, input_precision="ieee")
    return dk_j, dv_j


@triton.jit
def backward_keys(
    Q, K, V, DO, L, DELTA, DK, DV, CU, s, t, shift, tau, G: tl.constexpr,
    D: tl.constexpr, B_R: tl.constexpr, B_C: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys, over the G query heads that share it."""
    start, kv_head = tl.program_id(0) * B_C, tl.program_id(1).to(tl.int64)  # over b · h_k
    all_s, all_t = s, t
    at, s, t = document(CU, tl.program_id(2), s, t, PACKED)
    mine = (kv_head * all_t + at) * D
    k_j, v_j = matrix(K + mine, start, t, D, B_C), matrix(V + mine, start, t, D, B_C)
    dk_j, dv_j = tl.zeros([B_C, D], tl.float32), tl.zeros([B_C, D], tl.float32)
    first, whole, clear, end = rows_of(start, s, t, shift, B_R, B_C, CAUSAL, WINDOW)
    for g in range(G):
        row = (kv_head * G + g) * all_s + at
        Q_g, DO_g, L_g, DELTA_g = Q + row * D, DO + row * D, L + row, DELTA + row
        dk_j, dv_j = add_rows(
            dk_j, dv_j, k_j, v_j, Q_g, DO_g, L_g, DELTA_g, start, first, whole, s, t, shift, tau,
            D, B_R, B_C, CAUSAL, WINDOW, CAP, True,
        )  # fmt: skip
        dk_j, dv_j = add_rows(
            dk_j, dv_j, k_j, v_j, Q_g, DO_g, L_g, DELTA_g, start, whole, clear, s, t, shift, tau,
            D, B_R, B_C, CAUSAL, WINDOW, CAP, False,
        )  # fmt: skip
        dk_j, dv_j = add_rows(
            dk_j, dv_j, k_j, v_j, Q_g, DO_g, L_g, DELTA_g, start, clear, end, s, t, shift, tau,
            D, B_R, B_C, CAUSAL, WINDOW, CAP, True,
        )  # fmt: skip
    write(DK + mine, dk_j * tau, start, t, D, B_C)
    write(DV + mine, dv_j, start, t, D, B_C)


@triton.jit
def add_keys(
    dq_i, q_i, do_i, l_i, d_i, K, V, start, begin, end, t, shift, tau,
    D: tl.constexpr, B_R: tl.constexpr, B_C: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    rows = start + tl.arange(0, B_R)
    for j in range(begin, end, B_C):
        columns = j + tl.arange(0, B_C)
        k_j, v_j = matrix(K, j, t, D, B_C), matrix(V, j, t, D, B_C)
        _, ds_ij = gradients(q_i, do_i, l_i, d_i, k_j, v_j, rows, columns, t, shift, tau, CAUSAL, WINDOW, CAP, CUT)
        dq_i = tl.dot(ds_ij.to(k_j.dtype), k_j, dq_i, input_precision="ieee")
    return dq_i


@triton.jit
def backward_queries(
    Q, K, V, DO, L, DELTA, DQ, CU, s, t, shift, tau, G: tl.constexpr,
    D: tl.constexpr, B_R: tl.constexpr, B_C: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries."""
    start, head = tl.program_id(0) * B_R, tl.program_id(1).to(tl.int64)  # over b · h
    all_s, all_t = s, t
    at, s, t = document(CU, tl.program_id(2), s, t, PACKED)
    row, keys = head * all_s + at, (head // G * all_t + at) * D
    rows = start + tl.arange(0, B_R)
    q_i, do_i = matrix(Q + row * D, start, s, D, B_R), matrix(DO + row * D, start, s, D, B_R)
    l_i = tl.load(L + row + rows, mask=rows < s, other=float("inf"))
    d_i = tl.load(DELTA + row + rows, mask=rows < s, other=0.0)
    dq_i = tl.zeros([B_R, D], tl.float32)
    K, V = K + keys, V + keys
    first, whole, clear, end = keys_of(start, s, t, shift, B_R, B_C, CAUSAL, WINDOW)
    dq_i = add_keys(
        dq_i, q_i, do_i, l_i, d_i, K, V, start, first, whole, t, shift, tau, D, B_R, B_C, CAUSAL, WINDOW, CAP, True
    )  # fmt: skip
    dq_i = add_keys(
        dq_i, q_i, do_i, l_i, d_i, K, V, start, whole, clear, t, shift, tau, D, B_R, B_C, CAUSAL, WINDOW, CAP, False
    )  # fmt: skip
    dq_i = add_keys(
        dq_i, q_i, do_i, l_i, d_i, K, V, start, clear, end, t, shift, tau, D, B_R, B_C, CAUSAL, WINDOW, CAP, True
    )  # fmt: skip
    write(DQ + row * D, dq_i * tau, start, s, D, B_R)
