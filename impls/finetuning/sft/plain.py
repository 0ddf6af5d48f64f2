"""The dense model on conversations that never share a row: no padding, no packing, no mask.

Attention, the only place where one token reads another, is computed for each conversation alone; all else is done token
by token, for a micro-batch at once. The template is stated here a second time, so that a mistake in it is noticed.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.spec import Topology, Workload
from impls.common import weights
from impls.common.decoder import attend, wide
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.optimizer import MasterWeights, clip, optimizer
from impls.common.rope import rope_table
from impls.common.weights import build_model
from impls.finetuning.sft.data import ASSISTANT, BOS, END, USER, Example
from impls.finetuning.sft.spelt import spelt


def options(
    workload: Workload,
    topology: Topology,
    packing: str = "",
    attention: str = "sdpa",
    saved: bool = False,
    sharded: bool = False,
    **variant: Any,
) -> dict[str, Any]:
    """The layout, the way of computing attention, the model's folder and sharding change nothing."""
    return variant


def initial(workload: Workload, **options: Any) -> Iterator[tuple[str, Tensor]]:
    return weights.initial(workload)


def learnt(example: Example, every: bool, length: int, keep: str) -> tuple[list[int], list[int]]:
    """The tokens of a conversation, and the places of those that have a loss."""
    if example.given:
        pairs = spelt(example.chat, example.given, every)
    else:
        pairs = [(BOS, False)]
        for left, (role, words) in zip(range(len(example.turns), 0, -1), example.turns, strict=True):
            pairs.append((USER if role == "user" else ASSISTANT, False))
            pairs += [(token, role != "user" and (every or left == 1)) for token in (*words, END)]
    pairs = pairs[-length:] if keep == "end" else pairs[:length]
    return [token for token, _ in pairs], [place for place, (_, own) in enumerate(pairs) if own and place]


def alone(lengths: Sequence[int], window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of each of the conversations that follow each other, [1, heads, n, d]."""
    parts = zip(*(t.split(lengths, 2) for t in (q, k, v)), strict=True)
    return torch.cat([attend(*part, window) for part in parts], 2)


class Plain:
    """``permute`` reverses the order of conversations; ``math``: unfused kernels."""

    def __init__(
        self,
        workload: Workload,
        permute: bool,
        math: bool,
        every: bool = False,
        smoothing: float = 0.0,
        keep: str = "",
        noise: float = 0.0,
    ) -> None:
        without_experts(workload, "conversations are trained here with")
        self.workload, self.permute = workload, permute
        self.every, self.smoothing, self.keep, self.noise = every, smoothing, keep, noise
        self.kernels = partial(sdpa_kernel, SDPBackend.MATH) if math else contextlib.nullcontext
        self.model = build_model(workload)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.optimizer = MasterWeights(self.model.parameters(), workload, partial(optimizer, fused=not math))

    def backward(self, batch: Sequence[Example]) -> Tensor:
        batch = batch[::-1] if self.permute else batch
        texts = [learnt(e, self.every, self.workload.sequence_length, self.keep) for e in batch]
        count = sum(len(places) for _, places in texts)
        size, total = len(batch) // self.workload.micro_batches, torch.zeros((), dtype=torch.float64)
        for start in range(0, len(batch), size):
            micro = slice(start, start + size)
            with self.kernels():
                loss = self.loss(texts[micro], batch[micro]) / count
                loss.backward()
            total += loss.detach().cpu()
        return total

    def loss(self, texts: Sequence[tuple[list[int], list[int]]], examples: Sequence[Example]) -> Tensor:
        """Σ over the learnt tokens of the cross-entropy with q = (1 − ε) one-hot + ε/V."""
        lengths = [len(tokens) for tokens, _ in texts]
        tokens = torch.tensor([token for each, _ in texts for token in each], device=device())  # [n]
        positions = torch.cat([torch.arange(length) for length in lengths])  # [n]
        log_p = wide(self.logits(tokens, positions, lengths, examples)).log_softmax(-1)  # [n, V]
        total = log_p.new_zeros(())
        for each, own, (_, places) in zip(log_p.split(lengths), tokens.split(lengths), texts, strict=True):
            for_next, here = each[:-1], torch.tensor(places, device=device(), dtype=torch.long)
            q = F.one_hot(own[here], each.shape[-1]).to(each.dtype)
            q = (1 - self.smoothing) * q + self.smoothing / q.shape[-1]
            total = total - (q * for_next[here - 1]).sum()
        return total

    def logits(self, tokens: Tensor, positions: Tensor, lengths: list[int], examples: Sequence[Example]) -> Tensor:
        body = self.model.model
        x = body.embed_tokens(tokens[None])  # [1, n, h]
        if self.noise:
            noises = [e.noise[:length] for e, length in zip(examples, lengths, strict=True) if e.noise is not None]
            scaled = [u * (self.noise / (u.shape[0] * u.shape[1]) ** 0.5) for u in noises]
            x = x + torch.cat(scaled).to(x)
        tables = rope_table(len(tokens), self.workload.model, device(), positions)
        cos, sin = (table.to(x.dtype) for table in tables)
        for index, layer in enumerate(body.layers):
            layer.self_attn.attend = partial(alone, lengths, self.workload.model.window(index))
            x = layer(x, cos, sin)
        logits: Tensor = self.model.lm_head(body.norm(x))[0]
        return logits

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {n: p.grad.cpu() for n, p in self.model.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.names, self.optimizer.masters, strict=True)}


def build(workload: Workload, topology: Topology, permute: bool = False, math: bool = False, **options: Any) -> Plain:
    return Plain(workload, permute, math, **options)
