"""A stage of the pipeline: consecutive layers of the decoder, under their canonical names."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import ModelConfig, Workload
from impls.common.decoder import Layer, RMSNorm, cross_entropy, rope_table, wide
from impls.common.mesh import device
from impls.common.stages import EMBEDDING, HEAD, split
from impls.common.weights import TORCH_DTYPES
from impls.parallelism.pipeline_parallel.schedules import Plan


class Deferred(torch.autograd.Function):
    """x Wᵀ, whose backward pass gives ∂x at once and leaves ∂W to be computed later (Qi et al. 2023, §4.3)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, later: list) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.later = weight, later  # the parameter itself: saved tensors need not come back as the same
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, d_y: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        ctx.later.append((ctx.weight, d_y.flatten(0, -2), x.flatten(0, -2)))
        return d_y @ ctx.weight, None, None


def weight_gradients(later: list[tuple[nn.Parameter, Tensor, Tensor]]) -> None:
    """∂W = ∂yᵀ x of everything that was left, added to the parameters' gradients."""
    with torch.no_grad():
        for weight, d_y, x in later:
            if weight.grad is None:
                weight.grad = d_y.T @ x
            else:
                weight.grad.addmm_(d_y.T, x)
    later.clear()


class Body(nn.Module):
    def __init__(self, config: ModelConfig, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        if first:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleDict({str(index): Layer(config) for index in layers})
        if last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Stage(nn.Module):
    """Layers ``layers`` of the model; the first stage has the embedding, the last one norm, head and loss.

    Token ids [b, s] (first stage) or activations [b, s, h] in; activations [b, s, h] out, or of the last stage logits
    [b, s, V], with labels [b, s] their mean cross-entropy. ``later``: where split backward passes leave their weights'
    part.
    """

    positions: Tensor | None = None  # in the sequence, where a rank has not all of them

    def __init__(self, config: ModelConfig, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        self.config, self.first, self.last = config, first, last
        self.model = Body(config, layers, first, last)
        if last:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.later: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def message(self, inputs: Tensor) -> tuple[int, ...]:
        """The shape of what goes on to the next stage, of token ids [b, s]."""
        return (*inputs.shape, self.config.hidden_size)

    def defer(self) -> None:
        """Splits the backward pass of all products from here on."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.forward = _deferred(module, self.later)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        body = self.model
        if self.first:
            x = body.embed_tokens(x)
        cos, sin = (table.to(x.dtype) for table in rope_table(x.shape[1], self.config, x.device, self.positions))
        for layer in body.layers.values():
            x = layer(x, cos, sin)
        if not self.last:
            return x
        logits = wide(self.lm_head(body.norm(x)))
        return logits if labels is None else cross_entropy(logits, labels)


def _deferred(module: nn.Linear, later: list[tuple[nn.Parameter, Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    return lambda x: Deferred.apply(x, module.weight, later)


def build_stages(
    workload: Workload, plan: Plan, rank: int, make: Callable[[ModelConfig, range, bool, bool], Stage]
) -> tuple[dict[int, Stage], dict[str, nn.Parameter]]:
    """A rank's stages, uninitialised, and their parameters by canonical name: a tied embedding is one of them, also
    where this rank has both ends."""
    config, stages = workload.model, {}
    layers, weights = split(config.num_hidden_layers, plan.stages), dict[str, nn.Parameter]()
    for stage in (s for s, holder in enumerate(plan.rank_of) if holder == rank):
        place = stage % plan.stages
        with torch.device("meta"):
            module = make(config, layers[place], place == 0, place == plan.stages - 1)
        stages[stage] = module.to(TORCH_DTYPES[workload.dtype]).to_empty(device=device())
        for name, parameter in list(module.named_parameters()):
            if name == HEAD and config.tie_word_embeddings:
                name = EMBEDDING
            if name in weights:
                holder = module.lm_head if module.last else module.model.embed_tokens
                holder.weight = weights[name]
            else:
                weights[name] = parameter
    # In the model's order, which is the same on all ranks that add up gradients.
    return stages, {name: weights[name] for name, _ in config.shapes() if name in weights}
