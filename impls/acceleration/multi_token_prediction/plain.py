"""The dense model with multi-token prediction on one process, as in the paper: depth k has positions 1 to T − k."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.spec import Batch, ModelConfig, Topology, Workload
from impls.acceleration.multi_token_prediction.shapes import added
from impls.common import weights
from impls.common.decoder import Decoder, Layer, RMSNorm, wide
from impls.common.experts import without_experts
from impls.common.features import without
from impls.common.mesh import cut, device, placed
from impls.common.optimizer import MasterWeights, clip, optimizer
from impls.common.rope import rope_table
from impls.common.weights import TORCH_DTYPES


def options(workload: Workload, topology: Topology, sequence_parallel: bool = False, **variant: Any) -> dict[str, Any]:
    return variant


def initial(workload: Workload, depth: int, **options: Any) -> Iterator[tuple[str, Tensor]]:
    """The main model's weights, then those of the depths."""
    yield from weights.initial(workload)
    for name, shape in added(workload.model, depth):
        yield name, weights.start(workload, name, shape)


class Depth(nn.Module):
    """What depth k has of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, eps = config.hidden_size, config.rms_norm_eps
        self.hnorm, self.enorm = RMSNorm(h, eps), RMSNorm(h, eps)
        self.eh_proj = nn.Linear(2 * h, h, bias=False)
        self.layer = Layer(config)
        self.norm = RMSNorm(h, eps)


class Dense(Decoder):
    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__(config)
        self.mtp = nn.ModuleList(Depth(config) for _ in range(depth))

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """[b, T] both → the sum of each depth's cross-entropies, [D + 1]; depth 0 is the main model."""
        length = tokens.shape[1]
        cos, sin = (table.to(self.lm_head.weight.dtype) for table in rope_table(length, self.config, tokens.device))
        h = self.model(tokens)  # [b, T, h]
        sums = [self.loss(h, labels)]
        for k, depth in enumerate(self.mtp, 1):
            left = length - k
            if left <= 0:  # no position has a target
                sums.append(torch.zeros_like(sums[0]))
                continue
            e = self.model.embed_tokens(tokens[:, k:])  # [b, T − k, h]
            both = torch.cat((depth.hnorm(h[:, :left]), depth.enorm(e)), -1)  # [b, T − k, 2h]
            h = depth.norm(depth.layer(depth.eh_proj(both), cos[:left], sin[:left]))  # [b, T − k, h]
            sums.append(self.loss(h, labels[:, k:]))
        return torch.stack(sums)

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(wide(self.lm_head(h)).flatten(0, 1), labels.flatten(), reduction="sum")


class Plain:
    """``permute`` and ``math``: honest variants, as in ``impls/common/plain.py``."""

    def __init__(
        self, workload: Workload, permute: bool, math: bool, depth: int, weight: float, over_t: bool = False
    ) -> None:
        without_experts(workload, "multi-token prediction is set up here with")
        without(workload, "a depth, which has no place among the layers,", "sliding_window")
        self.workload, self.permute, self.over_t = workload, permute, over_t
        self.attention = partial(sdpa_kernel, SDPBackend.MATH) if math else contextlib.nullcontext
        self.factors = torch.tensor([1.0] + [weight / depth] * depth, dtype=torch.float64, device=device())  # [D + 1]
        with torch.device("meta"):
            self.model = Dense(workload.model, depth).to(TORCH_DTYPES[workload.dtype])
        self.model.to_empty(device=device())
        if workload.model.tie_word_embeddings:  # to_empty unties
            self.model.lm_head.weight = self.model.model.embed_tokens.weight
        self.weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in initial(workload, depth):
                self.weights[name].copy_(tensor)
        self.optimizer = MasterWeights(self.weights.values(), workload, partial(optimizer, fused=not math))
        self.losses = torch.zeros_like(self.factors)  # [D + 1], of the last step

    def backward(self, batch: Batch) -> Tensor:
        if self.permute:
            batch = Batch(batch.inputs.flip(0), batch.labels.flip(0))
        counts = [int((batch.labels[:, k:] >= 0).sum()) for k in range(len(self.factors))]
        number = torch.tensor([max(count, 1) for count in counts], device=device())  # [D + 1]
        factors = self.factors * number / number[0] if self.over_t else self.factors
        self.losses = torch.zeros_like(self.factors)
        for micro in cut(batch, self.workload, 0, 1):
            with self.attention():
                losses = self.model(*placed(micro)) / number
                (losses * factors).sum().backward()
            self.losses += losses.detach()
        for parameter in self.weights.values():
            if parameter.grad is None:  # of a depth as deep as the sequence is long
                parameter.grad = torch.zeros_like(parameter)
        return self.losses[0]

    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def observe(self) -> Mapping[str, float]:
        return {f"mtp_{k}": loss for k, loss in enumerate(self.losses.tolist()) if k}

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.weights, self.optimizer.masters, strict=True)}


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **options: Any) -> Plain:
    return Plain(workload, permute, math, **options)
