"""FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608) as an algorithm: the schedule of two warpgroups (section 3.1)
and attention in FP8 (section 3.3). Both change how FlashAttention-2 runs on a Hopper GPU, not what it computes.

**Ping-pong.** A GPU's tensor cores compute products, its other units exponentials, which are far fewer. Two warpgroups
with one block of rows each take turns: barriers make one compute its softmax while the other one has the tensor cores.
For three blocks of keys, where S_j = Q K_jᵀ, P_j = softmax(S_j) and O_j = O + P_j V_j:

    phase            0        1        2           3           4           5           6        7
    warpgroup 1      S_0      P_0      O_0 S_1     P_1         O_1 S_2     P_2         O_2      ·
    warpgroup 2      ·        S_0      P_0         O_0 S_1     P_1         O_1 S_2     P_2      O_2

**FP8.** E4M3 has 3 bits of mantissa, and a number of 448 at most, so a scale maps a tensor's largest magnitude to 448.
One outlier makes the scale of a whole tensor coarse. Two remedies:

    block quantisation        a scale for each block that a tile loads: B_r rows of Q, B_c of K or V
    incoherent processing     Q M and K M in place of Q and K, where M Mᵀ = I, so that Q Kᵀ stays as it is; with
                              M = diag(random signs) · Hadamard / √d every element of Q M is a sum of all d of a row

    s queries and keys      d head dimension, a power of 2      B_r, B_c sizes of blocks      τ 1/√d      m, ℓ as in FA2
"""

import torch
from torch import Tensor

from impls.acceleration.flash_attention.tiles import blocks

B_R, B_C = 128, 128
E4M3 = torch.finfo(torch.float8_e4m3fn)
P_SCALE = 2.0**8  # of P ≤ 1 in E4M3: small probabilities stay above the smallest number, as in the published kernel


def pingpong(count: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What both warpgroups compute in each phase, for ``count`` blocks of keys."""
    products = [("S_0",), *((f"O_{j - 1}", f"S_{j}") for j in range(1, count)), (f"O_{count - 1}",)]
    alone = [action for j in range(count) for action in (products[j], (f"P_{j}",))] + [products[-1]]
    return list(zip([*alone, ()], [(), *alone], strict=True))


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor in E4M3, and its scale: x ≈ scale · x8."""
    scale = x.abs().max().clamp(min=1e-30) / E4M3.max
    return (x / scale).to(torch.float8_e4m3fn), scale


def in_blocks(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same with a scale for each block of rows: x [s, d] → x8 [s, d] and the scale of each row [s, 1]."""
    parts = [quantised(x[rows]) for rows in blocks(len(x), size)]
    scales = [scale.expand(len(x8), 1) for x8, scale in parts]
    return torch.cat([x8 for x8, _ in parts]), torch.cat(scales)


def hadamard(d: int) -> Tensor:
    """Entries ±1, rows orthogonal: [d, d], by Sylvester's doubling."""
    matrix = torch.ones(1, 1)
    while len(matrix) < d:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def incoherent(q: Tensor, k: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Q M and K M: [s, d] each. A fast Hadamard transform does this in O(d log d) per row, fused with RoPE."""
    d = q.shape[-1]
    signs = torch.randint(2, (d, 1), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1  # [d, 1]
    m = (signs * hadamard(d) / d**0.5).to(q.dtype)  # [d, d]
    return q @ m, k @ m


def attention(q: Tensor, k: Tensor, v: Tensor, block: bool = True, mixed: bool = True) -> Tensor:
    """FlashAttention-2's forward pass on FP8 inputs, for one head: q, k, v [s, d] → [s, d]. Products of E4M3 numbers
    are summed in float32, as the tensor cores' accumulator is taken to be. ``block``: block quantisation, or one scale
    per tensor; ``mixed``: incoherent processing."""
    tau, outputs = q.shape[-1] ** -0.5, []
    if mixed:
        q, k = incoherent(q, k)
    (q8, q_scale), (k8, k_scale), (v8, v_scale) = (
        in_blocks(x.float(), size if block else len(x)) for x, size in ((q, B_R), (k, B_C), (v, B_C))
    )
    for rows in blocks(len(q), B_R):
        o_i = torch.zeros(rows.stop - rows.start, v.shape[1])  # [B_r, d]
        l_i, m_i = torch.zeros(len(o_i), 1), torch.full((len(o_i), 1), -torch.inf)  # [B_r, 1]
        for columns in blocks(len(k), B_C):
            s_ij = q8[rows].float() @ k8[columns].float().T  # [B_r, B_c]
            s_ij = s_ij * (tau * q_scale[rows] * k_scale[columns].T)
            m_before, m_i = m_i, torch.maximum(m_i, s_ij.amax(-1, keepdim=True))
            p_ij = (s_ij - m_i).exp()  # [B_r, B_c]
            l_i = (m_before - m_i).exp() * l_i + p_ij.sum(-1, keepdim=True)
            p8 = (P_SCALE * p_ij).to(torch.float8_e4m3fn)
            product = p8.float() @ v8[columns].float() * (v_scale[columns][:1] / P_SCALE)  # [B_r, d]
            o_i = (m_before - m_i).exp() * o_i + product
        outputs.append(o_i / l_i)
    return torch.cat(outputs)
