"""Domino's schedule (Wang et al. 2024, "Domino", row-wise split of the inputs): two halves of the rows take turns.

    compute   A₀  A₁  M₀  M₁  A₀  …        A attention, M MLP, each with the norm before it; ₀ ₁ the halves
    wire          a₀  a₁  m₀  m₁  …        the sum of a half's partial results, behind the other half's next block

The backward pass alternates in the same way, with the sums of the blocks' input gradients:

    compute   M₁  M₀  A₁  A₀  …
    wire          m₁  m₀  a₁  …

Stage 0 is the embedding, stages 1 … 2L the blocks, stage 2L + 1 the head with its norm and loss; at every boundary of
two stages each half has one sum in flight, forward and backward.

    b rows   s sequence   h hidden_size   x residual stream [b/2, s, h]   n normalised [b/2, s, h]
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import GradientEdge, get_gradient_edge

from harness.spec import ModelConfig
from impls.common.rope import rope_table
from impls.parallelism.overlap.wire import Flight, Wire
from impls.parallelism.tensor_parallel.operators import Group
from impls.parallelism.tensor_parallel.reference import ParallelDecoder
from impls.parallelism.tensor_parallel.vocabulary import CrossEntropy, embedding


class Half:
    """Half of the rows in the stages: its sum in flight, and its tensors kept for the backward pass."""

    flight: Flight
    x: Tensor
    dx: Tensor
    loss: Tensor

    def __init__(self, model: "DominoDecoder", index: int, tokens: Tensor, labels: Tensor, count: Tensor) -> None:
        self.model, self.wire, self.index = model, model.wire, index
        self.tokens, self.labels, self.count = tokens, labels, count  # of the labels in both halves
        self.roots: list[GradientEdge] = []  # start of each stage's graph for the backward pass
        self.norms: list[tuple[Tensor, Tensor, Tensor]] = []  # before each stage but the first: input, output, n

    def forward(self, stage: int) -> None:
        if not stage:
            self.wire.compute("F", stage, self.index)
            return self._send(embedding(self.tokens, self.model.model.embed_tokens.weight, self.model.start))
        arrived = self.flight.wait()
        self.wire.compute("F", stage, self.index)
        self.x = (self.x + arrived if stage > 1 else arrived).detach().requires_grad_()
        normalised = self.model.norm(stage)(self.x)
        n = normalised.detach().requires_grad_()
        self.norms.append((self.x, normalised, n))
        if stage < self.model.stages - 1:
            self._send(self.model.block(stage, n))
        else:
            logits = self.model.lm_head(n)
            losses = CrossEntropy.apply(logits, self.labels, self.model.start, self.model.group)
            self.loss = losses.masked_fill(self.labels < 0, 0.0).sum() / self.count
            self.roots.append(get_gradient_edge(self.loss))

    def _send(self, partial: Tensor) -> None:
        self.roots.append(get_gradient_edge(partial))
        self.flight = self.wire.sum(partial.detach())

    def backward(self, stage: int, scale: Tensor) -> None:
        """Begins with the remainder of the stage behind: the norm before it."""
        root = self.roots.pop()
        if stage == self.model.stages - 1:
            self.wire.compute("B", stage, self.index)
            torch.autograd.backward(root, scale)
        else:
            dn = self.flight.wait()
            self.wire.compute("B", stage, self.index)
            x, normalised, _ = self.norms.pop()
            normalised.backward(dn)
            self.dx = x.grad if stage == self.model.stages - 2 else x.grad.add_(self.dx)
            torch.autograd.backward(root, self.dx)
        if stage:
            self.flight = self.wire.sum(self.norms[-1][2].grad)


class Turns(Function):
    """A loss with the backward pass ``run``. ``anchor`` only makes autograd call it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, loss: Tensor, run: Callable[[Tensor], None]) -> Tensor:
        ctx.run = run
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[None, None, None]:
        ctx.run(scale)
        return None, None, None


class DominoDecoder(ParallelDecoder):
    def __init__(self, config: ModelConfig, group: Group, wire: Wire) -> None:
        super().__init__(config, group)
        self.wire, self.stages = wire, 2 * config.num_hidden_layers + 2

    def norm(self, stage: int) -> torch.nn.Module:
        """The norm before this stage."""
        if stage == self.stages - 1:
            return self.model.norm
        layer = self.model.layers[(stage - 1) // 2]
        return layer.input_layernorm if stage % 2 else layer.post_attention_layernorm

    def block(self, stage: int, n: Tensor) -> Tensor:
        """[b/2, s, h] → this rank's part of the sum, [b/2, s, h]: of its heads, or of its part of the MLP's width."""
        layer = self.model.layers[(stage - 1) // 2]
        return layer.self_attn(n, *self.rope) if stage % 2 else layer.mlp(n)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Token ids [b, s] and labels [b, s] → mean cross-entropy, the same scalar on every rank. b is at least 2; if
        it is odd, the first half has one row more."""
        dtype = self.lm_head.weight.dtype
        self.rope = [table.to(dtype) for table in rope_table(tokens.shape[1], self.config, tokens.device)]
        count = (labels >= 0).sum()
        pairs = zip(tokens.tensor_split(2), labels.tensor_split(2), strict=True)
        halves = [Half(self, index, *pair, count) for index, pair in enumerate(pairs)]
        for stage in range(self.stages):
            for half in halves:
                half.forward(stage)

        def run(scale: Tensor) -> None:
            for stage in reversed(range(self.stages)):
                for half in reversed(halves):
                    half.backward(stage, scale)
            self.wire.pause()

        loss = sum(half.loss.detach() for half in halves)
        return Turns.apply(loss.new_zeros((), requires_grad=True), loss, run)
