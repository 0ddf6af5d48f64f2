"""Methods that put T virtual tokens before the text: prompt tuning, P-tuning and prefix tuning. All of the model is
frozen, and virtual tokens have no labels.

    prompt tuning (Lester et al. 2021, §2)         [P_e; X_e]: T rows P_e [T, h] before the embeddings X_e [s, h]
    P-tuning (Liu et al. 2021, §3.2)               P_e = MLP(E): its rows depend on each other's weights
    prefix tuning (Li & Liang 2021, §4.2, eq. 3)   P_idx [T, 2·L·k·d]: keys and values of T positions in every layer
    reparametrised (§4.3)                          P_idx = MLP(P'): θ and P' are trained, only P_idx is kept at the end

    position        0   1   …  T-1 │  T   T+1  …  T+s-1
    prompt tuning   p₀  p₁  …      │  x₀  x₁   …        all of them go through every layer
    prefix tuning   kv₀ kv₁ …      │  x₀  x₁   …        the text alone does, and sees the prefix in each of them

A prefix is what attention reads: the norm of keys and RoPE, which belong to the projection of a token, are not applied
to it. It fills a cache of T positions, so the text's positions begin at T in both pictures.

    b batch   s tokens   T virtual tokens   h hidden_size   L layers   k key/value heads   d head_dim   w MLP's width
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impls.common.decoder import Decoder, cross_entropy
from impls.common.rope import rope_table


def body(model: Decoder, x: Tensor, first: int) -> Tensor:
    """x [b, n, h] at positions first … first + n − 1 → the hidden states of the last layer."""
    positions = torch.arange(first, first + x.shape[1], device=x.device)
    cos, sin = (t.to(x.dtype) for t in rope_table(x.shape[1], model.config, x.device, positions))  # [n, d]
    for layer in model.model.layers:
        x = layer(x, cos, sin)
    y: Tensor = model.model.norm(x)
    return y


class PromptEncoder(nn.Module):
    """The rows of T virtual tokens, [T, n]: an embedding, or an MLP of one; float32."""

    def __init__(self, tokens: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, size)

    def forward(self) -> Tensor:
        return self.embedding.weight


class PTuningEncoder(PromptEncoder):
    """The MLP that the authors' code offers beside the LSTM of the paper."""

    def __init__(self, tokens: int, h: int, w: int) -> None:
        super().__init__(tokens, h)
        self.mlp_head = nn.Sequential(nn.Linear(h, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, h))

    def forward(self) -> Tensor:
        rows: Tensor = self.mlp_head(self.embedding.weight)
        return rows


class PrefixEncoder(PromptEncoder):
    """MLP_θ(P'): optimising P_idx itself is unstable, says section 4.3."""

    def __init__(self, tokens: int, k_d: int, w: int, layers: int) -> None:
        super().__init__(tokens, k_d)
        self.transform = nn.Sequential(nn.Linear(k_d, w), nn.Tanh(), nn.Linear(w, layers * 2 * k_d))

    def forward(self) -> Tensor:
        rows: Tensor = self.transform(self.embedding.weight)
        return rows


class SoftPrompt(nn.Module):
    """tokens and labels [b, s] → the mean loss of the labels."""

    def __init__(self, base: Decoder, encoder: PromptEncoder) -> None:
        super().__init__()
        self.base, self.prompt_encoder = base, encoder

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.base.model.embed_tokens(tokens)  # [b, s, h]
        P = self.prompt_encoder().to(x.dtype)  # [T, h]  # noqa: N806
        x = torch.cat((P.expand(len(x), -1, -1), x), dim=1)  # [b, T + s, h]
        y = body(self.base, x, first=0)[:, len(P) :]  # [b, s, h]
        return cross_entropy(self.base.lm_head(y), labels)


class Prefix(nn.Module):
    """The same, with keys and values of each layer in place of rows before the first."""

    def __init__(self, base: Decoder, encoder: PromptEncoder) -> None:
        super().__init__()
        self.base, self.prompt_encoder = base, encoder

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x, layers = self.base.model.embed_tokens(tokens), self.base.model.layers
        P = self.prompt_encoder().to(x.dtype)  # [T, 2·L·k·d]  # noqa: N806
        P = P.view(len(P), len(layers), 2, -1, layers[0].self_attn.d)  # [T, L, 2, k, d]  # noqa: N806
        for layer, prefix in zip(layers, P.permute(1, 2, 3, 0, 4), strict=True):
            layer.self_attn.attend = partial(attend, prefix)  # [2, k, T, d]
        y = body(self.base, x, first=len(P))  # [b, s, h]
        return cross_entropy(self.base.lm_head(y), labels)


def attend(prefix: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Queries [b, a, s, d] see the whole prefix [2, k, T, d], and the text causally."""
    b, s, T = len(query), query.shape[2], prefix.shape[2]  # noqa: N806
    P_k, P_v = prefix[:, None].expand(-1, b, -1, -1, -1)  # [b, k, T, d] each  # noqa: N806
    key, value = torch.cat((P_k, key), dim=2), torch.cat((P_v, value), dim=2)  # [b, k, T + s, d]
    seen = torch.ones(s, T + s, dtype=torch.bool, device=query.device).tril(T)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=grouped)
