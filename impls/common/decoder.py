"""Qwen3's decoder (Yang et al. 2025, "Qwen3 Technical Report", §2): pre-RMSNorm, QK-norm, RoPE, GQA, SwiGLU, no biases.
Its relatives differ in features of the config: Qwen2.5 has biases on q, k and v, and neither it nor Llama a QK-norm.

Equal to Transformers' ``Qwen3ForCausalLM`` (with experts, ``Qwen3MoeForCausalLM``), ``Qwen2ForCausalLM`` and
``LlamaForCausalLM`` on the same weights, with the same parameter names.

    b batch   s sequence   h hidden_size   a query heads   k key/value heads   d head_dim   V vocab_size
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import ModelConfig, MoeConfig
from impls.common.experts import Experts
from impls.common.rope import rope_table, rotate
from impls.common.routers import routers, slope, taken


def attend(query: Tensor, key: Tensor, value: Tensor, window: int = 0) -> Tensor:
    """Causal attention of queries [b, a, s, d] to keys and values [b, k, s, d]: a/k heads of queries share one. With a
    ``window``, to the last so many positions, the query's own among them."""
    s, grouped = query.shape[2], query.shape[1] != key.shape[1]
    if not 0 < window < s:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    seen = torch.ones(s, s, dtype=torch.bool, device=query.device).tril().triu(1 - window)  # [s, s]
    return F.scaled_dot_product_attention(query, key, value, seen, enable_gqa=grouped)


def wide(logits: Tensor) -> Tensor:
    """At least in float32, as in every trainer."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the labels that count; 0 if there are none, for example in a part of a sequence that ended
    before."""
    total = F.cross_entropy(wide(logits).flatten(0, -2), labels.flatten(), reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def mean(losses: Tensor, labels: Tensor) -> Tensor:
    """The sum over the labels that count, 0 if there are none. Removing the others would require the host to know their
    number."""
    counted = labels >= 0
    return losses.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    attend = staticmethod(attend)  # attention over several ranks' positions replaces it

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        h, self.d, bias = config.hidden_size, config.head_dim, config.qkv_bias
        q, kv = config.num_attention_heads * self.d, config.num_key_value_heads * self.d
        self.q_proj = nn.Linear(h, q, bias=bias)
        self.k_proj, self.v_proj = nn.Linear(h, kv, bias=bias), nn.Linear(h, kv, bias=bias)
        self.q_norm, self.k_norm = (
            RMSNorm(self.d, config.rms_norm_eps) if config.qk_norm else nn.Identity() for _ in "qk"
        )
        self.o_proj = nn.Linear(q, h, bias=config.o_bias)
        if window := config.window(layer):
            self.attend = partial(attend, window=window)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, _ = x.shape
        # Heads are counted from the tensors, so that a tensor-parallel shard of the projections can use the same code.
        query = self.q_norm(self.q_proj(x).view(b, s, -1, self.d)).transpose(1, 2)  # [b, a, s, d]
        key = self.k_norm(self.k_proj(x).view(b, s, -1, self.d)).transpose(1, 2)  # [b, k, s, d]
        value = self.v_proj(x).view(b, s, -1, self.d).transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return self.o_proj(self.attend(query, key, value).transpose(1, 2).reshape(b, s, -1))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, f = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(h, f, bias=config.mlp_bias), nn.Linear(h, f, bias=config.mlp_bias)
        self.down_proj = nn.Linear(f, h, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Experts(config) if isinstance(config, MoeConfig) else MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Body(nn.Module):
    """The model without the head: [b, s] token ids → [b, s, h].

    With stochastic depth (Huang et al. 2016, "Deep Networks with Stochastic Depth", §3) a sequence skips a layer with
    probability 1 − p, and the residual connection takes its place. Here p is 1 − 1/L: a sequence skips one of the L
    layers, which its first token chooses, so that every engine draws alike. A layer that all sequences of a micro-batch
    skip is not called.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        cos, sin = (t.to(x.dtype) for t in rope_table(tokens.shape[1], self.config, tokens.device))
        for index, layer in enumerate(self.layers):
            if self.config.stochastic_depth:
                x = skipping(layer, tokens[:, 0] % len(self.layers) == index, x, cos, sin)
            else:
                x = layer(x, cos, sin)
        return self.norm(x)


def skipping(layer: nn.Module, skip: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [b, s, h] after a layer that some of the sequences skip, skip [b]."""
    if skip.all():
        return x
    return x.index_put((~skip,), layer(x[~skip], cos, sin))


class Decoder(nn.Module):
    """Token ids [b, s] → logits [b, s, V]; with labels [b, s] (-100: ignored) → their mean cross-entropy, a scalar,
    with the gradient of the routers' losses too."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = self.lm_head(self.model(tokens))
        if labels is None:
            return logits
        return sum(map(slope, taken(routers(self.model), labels)), cross_entropy(logits, labels))
