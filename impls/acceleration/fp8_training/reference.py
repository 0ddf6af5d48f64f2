"""A small decoder trained with FP8 linear layers (DeepSeek-AI 2024, "DeepSeek-V3", §3.3.1, figure 6): the products of
the attention's and the MLP's matrices have FP8 operands and return bfloat16; embedding, head, norms and attention stay
in float32, and so do the master weights and AdamW's moments.

    x ← x + O attention(Q, K, V of norm(x))        QKV, O, the MLP's gate and up, and down are FP8
    x ← x + W_down (silu(W_gate n) ∘ W_up n)       n = norm(x)

``scaling`` is a recipe of impls/acceleration/fp8; "bf16" multiplies bfloat16 matrices, "fp32" float32 ones. Batches and
initial weights depend on the seed alone, so that two recipes differ in nothing but their rounding.

    b batch   s sequence   h hidden   a heads   f MLP   v vocabulary   H history
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Curves, Topology, Workload
from impls.acceleration.fp8.problem import HISTORY
from impls.acceleration.fp8.recipes import RECIPES
from impls.acceleration.fp8.reference import GRADIENTS, Linear, pushed
from impls.acceleration.fp8_training.text import sentences


class Projection(nn.Linear):
    def __init__(self, inputs: int, outputs: int, scaling: str, gradients: str) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.scaling, self.gradients = scaling, gradients
        # Newest first; before the first step only zeros, for which the scale is 1.
        self.past = {name: torch.zeros(HISTORY) for name in ("x_history", "weight_history")}
        self.dy_past = torch.zeros(HISTORY, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, inputs] → [b, s, outputs], float32."""
        if self.scaling == "fp32":
            return super().forward(x)
        x, w = x.bfloat16(), self.weight.bfloat16()
        if self.scaling == "bf16":
            return F.linear(x, w).float()
        recipe = RECIPES[self.scaling]
        past, dy_past = (self.past, self.dy_past) if recipe.delayed else ({}, None)
        flat = x.flatten(0, -2)
        y, *_ = Linear.apply(flat, w, recipe, GRADIENTS[self.gradients], past, dy_past)
        if recipe.delayed:
            self.past = {
                "x_history": pushed(past["x_history"], flat),
                "weight_history": pushed(past["weight_history"], w),
            }
        return y.unflatten(0, x.shape[:-1]).float()

    def remember(self) -> None:
        """The backward pass left the next history of dY as a gradient."""
        if self.dy_past.grad is not None:
            self.dy_past, self.dy_past.grad = self.dy_past.grad.requires_grad_(), None


class Decoder(nn.Module):
    def __init__(self, v: int, h: int, a: int, f: int, layers: int, scaling: str, gradients: str) -> None:
        super().__init__()
        self.a, self.embedding, self.head = a, nn.Embedding(v, h), nn.Linear(h, v, bias=False)
        sizes = {"qkv": (h, 3 * h), "o": (h, h), "gate_up": (h, 2 * f), "down": (f, h)}
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: Projection(*size, scaling, gradients) for name, size in sizes.items()})
            for _ in range(layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[b, s] → logits [b, s, v]. Sentences are short, and the language needs no positions."""
        x = self.embedding(tokens)  # [b, s, h]
        for layer in self.layers:
            heads = layer["qkv"](norm(x)).unflatten(-1, (3, self.a, -1)).permute(2, 0, 3, 1, 4)  # [3, b, a, s, h / a]
            mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + layer["o"](mixed.transpose(1, 2).flatten(2))
            gate, up = layer["gate_up"](norm(x)).chunk(2, -1)  # [b, s, f]
            x = x + layer["down"](F.silu(gate) * up)
        logits: Tensor = self.head(norm(x))
        return logits


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def run(workload: Workload, topology: Topology, seed: int, budget: int, scaling: str, gradients: str) -> Curves:
    """``budget`` sentences; the score is the loss of each step, before its update."""
    model, batch = workload.model, workload.batch_size
    torch.manual_seed(seed)
    decoder = Decoder(
        model.vocab_size,
        model.hidden_size,
        model.num_attention_heads,
        model.intermediate_size,
        model.num_hidden_layers,
        scaling,
        gradients,
    )
    text = sentences(budget, workload.sequence_length + 1, model.vocab_size, seed)  # [budget, s + 1]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=workload.lr, weight_decay=0.0, fused=True)
    projections = [module for module in decoder.modules() if isinstance(module, Projection)]
    samples, scores, start = [], [], time.monotonic()
    for tokens in text.split(batch):
        loss = F.cross_entropy(decoder(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for projection in projections:
            projection.remember()
        samples.append(batch * (len(samples) + 1))
        scores.append(float(loss.detach()))
    return Curves(samples, scores, time.monotonic() - start)
