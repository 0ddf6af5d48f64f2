"""A stage of the pipeline: consecutive layers of the decoder, under their canonical names."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Batch, ModelConfig, Workload
from impls.common import stages
from impls.common.cuts import EMBEDDING, HEAD, split
from impls.common.decoder import Layer, cross_entropy, wide
from impls.common.mesh import device
from impls.common.rope import rope_table
from impls.common.weights import TORCH_DTYPES, initial
from impls.parallelism.pipeline_parallel.plan import Plan

Product = tuple[nn.Parameter, Tensor, Tensor]  # weight [n, h], the output's gradient dy [b·s, n], the input x [b·s, h]


class Deferred(torch.autograd.Function):
    """x Wᵀ, whose backward pass gives ∂x at once and leaves ∂W to be computed later (Qi et al. 2023, §4.3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, later: list[Product]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.later = weight, later
        return F.linear(x, weight)  # [b, s, n]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors  # [b, s, h]
        ctx.later.append((ctx.weight, dy.flatten(0, -2), x.flatten(0, -2)))
        return dy @ ctx.weight, None, None  # [b, s, h]


def deferred(weight: nn.Parameter, bias: nn.Parameter | None, later: list[Product], x: Tensor) -> Tensor:
    """[b, s, h] → [b, s, n]; ∂b, a sum, is not left for later."""
    y = Deferred.apply(x, weight, later)
    return y if bias is None else y + bias


@torch.no_grad()
def weight_gradients(later: list[Product]) -> None:
    """∂W = ∂yᵀ x of all products that were left, added to the parameters' gradients."""
    for weight, dy, x in later:
        dw = dy.T @ x  # [n, h]
        weight.grad = dw if weight.grad is None else weight.grad.add_(dw)


class Stage(stages.Stage):
    """A stage that also computes the loss, comes in parts, and may split its backward pass.

    Token ids [b, s] (first stage) or activations [b, s, h] in; activations [b, s, h] out, or of the last stage logits
    [b, s, V], with labels [b, s] their mean cross-entropy.
    """

    def __init__(self, config: ModelConfig, layers: range, first: bool, last: bool) -> None:
        super().__init__(config, layers, first, last)
        self.later: list[Product] = []  # what split backward passes leave

    def message(self, inputs: Tensor) -> tuple[int, ...]:
        """The shape of what goes on to the next stage, of token ids [b, s]."""
        return (*inputs.shape, self.config.hidden_size)

    def defer(self) -> None:
        """Splits the backward pass of all products from here on."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.forward = partial(deferred, module.weight, module.bias, self.later)

    def parts(self, batch: Batch) -> list[Callable[[Tensor], Tensor]]:
        """The stage as functions one behind the other: the embedding, each layer, the loss."""
        first = [self.model.embed_tokens] if self.first else []
        return [*first, *self.layers(batch.inputs.shape[1]), *([partial(self.head, labels=batch.labels)] * self.last)]

    def layers(self, s: int) -> list[Callable[[Tensor], Tensor]]:
        """[b, s, h] → [b, s, h] each."""
        tables = rope_table(s, self.config, device(), self.positions)  # [s, d] twice
        return [partial(self.layer, layer, tables) for layer in self.model.layers.values()]

    @staticmethod
    def layer(layer: Layer, tables: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """[b, s, h] → [b, s, h]"""
        return layer(x, *(table.to(x.dtype) for table in tables))

    def head(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = wide(self.lm_head(self.model.norm(x)))  # [b, s, V]
        return logits if labels is None else cross_entropy(logits, labels)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.model.embed_tokens(x) if self.first else x  # [b, s, h]
        for layer in self.layers(x.shape[1]):
            x = layer(x)
        return self.head(x, labels) if self.last else x


def build_stages(
    workload: Workload,
    plan: Plan,
    rank: int,
    make: Callable[[ModelConfig, range, bool, bool], Stage],
    part: Callable[[str, Tensor], Tensor],
) -> tuple[dict[int, Stage], dict[str, nn.Parameter]]:
    """A rank's stages with the initial weights, and these by canonical name: a tied embedding is one of them, also
    where this rank has both ends. ``part``: name and whole weight → what this rank has of it."""
    config, stages = workload.model, {}
    layers, weights = split(config.num_hidden_layers, plan.stages), dict[str, nn.Parameter]()
    # 1. Stages without values; a rank may have several.
    for stage in (s for s, holder in enumerate(plan.rank_of) if holder == rank):
        place = stage % plan.stages
        with torch.device("meta"):
            module = make(config, layers[place], place == 0, place == plan.stages - 1)
        stages[stage] = module.to(TORCH_DTYPES[workload.dtype]).to_empty(device=device())
        # 2. Their weights' names.
        for name, parameter in list(module.named_parameters()):
            if name == HEAD and config.tie_word_embeddings:
                name = EMBEDDING
            if name in weights:
                holder = module.lm_head if module.last else module.model.embed_tokens
                holder.weight = weights[name]
            else:
                weights[name] = parameter
    # 3. Values.
    with torch.no_grad():
        for name, full in initial(workload):
            if name in weights:
                weights[name].copy_(part(name, full))
    # In the model's order, which is the same on all ranks that add up gradients.
    return stages, {name: weights[name] for name, _ in config.shapes() if name in weights}
