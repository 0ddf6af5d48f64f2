"""Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", §2.1, equations 9–19): a token keeps one latent c
and one rotary key k_R for all heads, from which each head computes its keys and values.

    c_q = norm(W_DQ x)     q_i = [W_UQ c_q ; rope(W_QR c_q)]_i                          i over a heads
    c   = norm(W_DKV x)    k_i = [W_UK c]_i ; rope(W_KR x)         v_i = [W_UV c]_i
    y   = W_O [softmax(q_iᵀ k_i / √(d + d_R)) v_i]_i

Training writes k_i and v_i out. Decoding *absorbs* W_UK into the query and W_UV into the output (§2.1.2): heads then
attend to the latents themselves, r + d_R numbers per token, and a cache keeps nothing else:

    q_iᵀ k_i = (W_UKᵢᵀ q_i)ᵀ c + rope(·)ᵀ k_R        Σ w v_i = W_UVᵢ Σ w c

Tensor parallelism divides the heads. Every rank computes the latents and the rotary key, and each rank's heads add to
their gradients, which one all-reduce of b·s·(r_q + r + d_R) elements sums.

    b batch   s sequence   h hidden   a heads   d of a head   d_R rotary   r_q, r latent ranks   t tensor-parallel ranks
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Topology, Workload
from impls.acceleration.latent_attention.problem import EPS, THETA, rotated
from impls.acceleration.latent_attention.sizes import sizes
from impls.acceleration.latent_attention.spread import Heads
from impls.parallelism.tensor_parallel.operators import copy, reduce


class LatentAttention(Heads):
    def __init__(self, workload: Workload, topology: Topology, absorbed: bool) -> None:
        super().__init__(topology)
        self.sizes, self.absorbed = sizes(workload.model), absorbed

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """x [b, s, h], q_up [a/t (d + d_R), r_q], kv_up [a/t 2d, r], out [h, a/t d], the others whole →
        output [b, s, h]."""
        _, r_q, r, d, d_r = self.sizes
        x = inputs["x"]
        c_q = F.rms_norm(F.linear(x, inputs["q_down"]), (r_q,), inputs["q_norm"], EPS)
        c, k_r = F.linear(x, inputs["kv_down"]).split([r, d_r], -1)
        c = F.rms_norm(c, (r,), inputs["kv_norm"], EPS)
        if self.tp > 1:  # one message for the gradients of all three
            c_q, c, k_r = copy(torch.cat([c_q, c, k_r], -1), dist.group.WORLD).split([r_q, r, d_r], -1)
        k_r = rotated(k_r.unsqueeze(1), THETA)  # [b, 1, s, d_R]

        query = F.linear(c_q, inputs["q_up"]).unflatten(-1, (-1, d + d_r)).transpose(1, 2)
        q, q_r = query[..., :d], rotated(query[..., d:], THETA)  # [b, a/t, s, ·]
        attend = self._latents if self.absorbed else self._heads
        heads = attend(q, q_r, c, k_r, inputs["kv_up"].unflatten(0, (-1, 2 * d)))
        output = F.linear(heads.transpose(1, 2).flatten(2), inputs["out"])
        return {"output": reduce(output, dist.group.WORLD) if self.tp > 1 else output}

    def _heads(self, q: Tensor, q_r: Tensor, c: Tensor, k_r: Tensor, up: Tensor) -> Tensor:
        """up [a/t, 2d, r]: keys and values of every head, [b, a/t, s, d]."""
        key, value = F.linear(c, up.flatten(0, 1)).unflatten(-1, up.shape[:2]).transpose(1, 2).chunk(2, -1)
        return attention(torch.cat([q, q_r], -1), torch.cat([key, k_r.expand(*key.shape[:3], -1)], -1), value)

    def _latents(self, q: Tensor, q_r: Tensor, c: Tensor, k_r: Tensor, up: Tensor) -> Tensor:
        """The same number of queries, but one key and one value, [b, 1, s, r + d_R] and [b, 1, s, r]."""
        up_key, up_value = up.chunk(2, 1)
        latent, scale = c.unsqueeze(1), (q.shape[-1] + q_r.shape[-1]) ** -0.5
        mixed = attention(torch.cat([q @ up_key, q_r], -1), torch.cat([latent, k_r], -1), latent, scale)
        return mixed @ up_value.mT


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Causal attention. Kernels that are linear in s need values as wide as keys (except CUDA's for groups of queries),
    so zeros widen the values."""
    grouped, width = query.shape[1] != key.shape[1], value.shape[-1]
    if grouped or not query.is_cuda:
        value = F.pad(value, (0, key.shape[-1] - width))
    found = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    return found[..., :width]


def build(workload: Workload, topology: Topology, absorbed: bool) -> LatentAttention:
    return LatentAttention(workload, topology, absorbed)
