"""The dense model on one process: one layer of the textbook, in which each method has its place. No parameter starts
at zero or one, as it would in practice: a method that does nothing would not be noticed.

    bottleneck   x + f(x) after each half of a layer, before the residual connection
    prefix       T keys and values before those of the tokens, in each layer, as they are: RoPE and the norm of keys
                 belong to the projection of a token. The tokens' positions begin at T
    prompt       T rows before the embeddings of the tokens, at positions 0 … T − 1
    p_tuning     these rows are the outputs of an MLP
    ia3          keys (before their norm), values and the input of down_proj, each times a vector

Only the tokens have labels.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.spec import Topology, Workload
from impls.common.decoder import Attention, cross_entropy
from impls.common.experts import without_experts
from impls.common.features import without
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.rope import rope_table, rotate
from impls.common.trained import Dense
from impls.common.weights import build_model, weight
from impls.finetuning.prompt_methods.shapes import ENCODER, SCALED, trained


def options(workload: Workload, topology: Topology, unmasked: bool = False, **variant: Any) -> dict[str, Any]:
    return variant


def initial(workload: Workload, method: str, **sizes: int) -> Iterator[tuple[str, Tensor]]:
    """Float32. Prompts are as large as embeddings, prefixes and inputs of an MLP as large as normed keys, and biases
    as small as a tenth. A unit of P-tuning's MLP is clearly on or off, since a rounding error that switches one is
    outside any noise floor."""
    for name, shape in trained(workload.model, method, **sizes):
        if "mlp_head.0." in name or "mlp_head.2." in name:
            sign = torch.tensor([1.0, -1.0]).repeat(shape[0])[: shape[0]]
            yield name, weight(workload, name, shape) * (sign if len(shape) == 1 else 0.25)
        elif name.endswith(".bias"):
            yield name, weight(workload, name, shape) - 1
        elif name.endswith("embedding.weight") and method != "prompt":
            yield name, weight(workload, name, (shape[0] * shape[1], 1)).view(shape)
        else:
            yield name, weight(workload, name, shape)


class Plain(Dense):
    def __init__(
        self, workload: Workload, permute: bool, math: bool, method: str, m: int = 0, tokens: int = 0, width: int = 0
    ) -> None:
        without_experts(workload, "these methods are set up here with")
        without(workload, "attention to a prompt before the text", "sliding_window")
        self.workload, self.permute = workload, permute
        self.attention = partial(sdpa_kernel, SDPBackend.MATH) if math else contextlib.nullcontext
        self.base = build_model(workload).requires_grad_(False)
        wide = torch.promote_types(self.base.lm_head.weight.dtype, torch.float32)
        start = initial(workload, method, m=m, tokens=tokens, width=width)
        self.weights = {name: nn.Parameter(tensor.to(device(), wide)) for name, tensor in start}
        self.method, self.model = method, self.loss
        self.prefixed, self.prompted = (
            tokens if method in kind else 0 for kind in (("prefix",), ("prompt", "p_tuning"))
        )
        self.optimizer = optimizer(self.weights.values(), workload, fused=not math)
        if method == "ia3":
            self.merged, self.unmerge = self._merged, self._unmerge

    def rows(self) -> Tensor:
        """The virtual tokens, [T, …]."""
        rows: Tensor = self.weights[f"{ENCODER}.embedding.weight"]
        name, activation = ("transform", torch.tanh) if self.method == "prefix" else ("mlp_head", torch.relu)
        for place in (0, 2, 4):
            if (layer := f"{ENCODER}.{name}.{place}.weight") in self.weights:
                rows = F.linear(
                    activation(rows) if place else rows, self.weights[layer], self.weights[layer[:-6] + "bias"]
                )
        return rows

    def scaled(self, x: Tensor, name: str) -> Tensor:
        scale = self.weights.get(f"{name}.ia3_l")
        return x if scale is None else (x * scale).to(x.dtype)

    def adapted(self, x: Tensor, name: str) -> Tensor:
        if self.method != "bottleneck":
            return x
        down, b, up, c = (
            self.weights[f"{name}.adapter.{part}"].to(x.dtype)
            for part in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        return x + F.linear(F.gelu(F.linear(x, down, b)), up, c)

    def attend(self, x: Tensor, attention: Attention, index: int, cos: Tensor, sin: Tensor) -> Tensor:
        (b, s, _), name = x.shape, f"model.layers.{index}.self_attn"
        query, key, value = (
            self.scaled(projection(x), f"{name}.{kind}_proj").view(b, s, -1, attention.d)
            for kind, projection in (("q", attention.q_proj), ("k", attention.k_proj), ("v", attention.v_proj))
        )
        query, key = attention.q_norm(query).transpose(1, 2), attention.k_norm(key).transpose(1, 2)
        query, key, value = rotate(query, cos, sin), rotate(key, cos, sin), value.transpose(1, 2)
        if self.prefixed:
            # The row of a virtual token: layer 0's key and value, layer 1's, …; each has k heads.
            rows = self.rows().to(x.dtype).unflatten(1, (-1, 2, key.shape[1], attention.d))[:, index]
            before = rows.permute(1, 2, 0, 3)[:, None].expand(-1, b, -1, -1, -1)  # [2, b, k, T, d]
            key, value = torch.cat((before[0], key), dim=2), torch.cat((before[1], value), dim=2)
        mask = torch.ones(s, key.shape[2], dtype=torch.bool, device=x.device).tril(key.shape[2] - s)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=query.shape[1] != key.shape[1])
        return self.adapted(attention.o_proj(mixed.transpose(1, 2).reshape(b, s, -1)), name)

    def logits(self, tokens: Tensor) -> Tensor:
        x = self.base.model.embed_tokens(tokens)  # [b, s, h]
        if self.prompted:
            x = torch.cat((self.rows().to(x.dtype).expand(len(x), -1, -1), x), dim=1)  # [b, T + s, h]
        positions = torch.arange(self.prefixed, self.prefixed + x.shape[1])
        cos, sin = (t.to(x.dtype) for t in rope_table(0, self.workload.model, x.device, positions))
        for index, layer in enumerate(self.base.model.layers):
            x = x + self.attend(layer.input_layernorm(x), layer.self_attn, index, cos, sin)
            y, mlp, name = layer.post_attention_layernorm(x), layer.mlp, f"model.layers.{index}.mlp"
            inner = self.scaled(F.silu(mlp.gate_proj(y)) * mlp.up_proj(y), f"{name}.down_proj")
            x = x + self.adapted(mlp.down_proj(inner), name)
        return self.base.lm_head(self.base.model.norm(x))[:, self.prompted :]

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.logits(tokens), labels)

    def frozen(self) -> Mapping[str, Tensor]:
        names = [name.removesuffix(".ia3_l") + ".weight" for name in self.weights] if self.method == "ia3" else None
        return {n: p for n, p in self.base.named_parameters() if names is None or n in names}

    @torch.no_grad()
    def _merged(self) -> Mapping[str, Tensor]:
        for name, matrix in self.frozen().items():
            matrix.copy_(matrix * self._factor(name))
        return self.frozen()

    @torch.no_grad()
    def _unmerge(self) -> None:
        for name, matrix in self.frozen().items():
            matrix.copy_(matrix / self._factor(name))

    def _factor(self, name: str) -> Tensor:
        """Rows of a matrix make its output, columns take its input."""
        scale = self.weights[name.removesuffix("weight") + "ia3_l"]
        return scale if f"{SCALED[-1]}." in name else scale[:, None]


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **options: Any) -> Plain:
    return Plain(workload, permute, math, **options)
