"""The model: this rank's part of the main model and of the modules behind it (equations 21 to 24 in reference.py).

b sequences of a micro-batch   s positions of a sequence on a rank   h hidden_size   v this rank's part of the
vocabulary   t ranks of tp   D depths
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec import Batch, ModelConfig
from impls.acceleration.multi_token_prediction.plain import Depth
from impls.common.data import IGNORED
from impls.common.decoder import cross_entropy, mean
from impls.parallelism.sequence_parallel.reference import SequenceParallelDecoder
from impls.parallelism.tensor_parallel.operators import Group, column_parallel
from impls.parallelism.tensor_parallel.reference import ParallelDecoder
from impls.parallelism.tensor_parallel.vocabulary import CrossEntropy


def shifted(batch: Batch, k: int) -> Batch:
    """t_{i+k} and its label t_{i+k+1} at position i, [b, T] both; nothing counts at the last k positions."""
    k = min(k, batch.inputs.shape[1])
    return Batch(*(F.pad(x[:, k:], (0, k), value=fill) for x, fill in zip(batch, (0, IGNORED), strict=True)))


def mean_loss(logits: Tensor, labels: Tensor, start: int, group: Group) -> Tensor:
    """Mean cross-entropy of logits [..., v] and labels [...], a scalar; ranks of tp have parts of the vocabulary."""
    if group.size() == 1:
        return cross_entropy(logits, labels)
    return mean(CrossEntropy.apply(logits, labels, start, group), labels)


class Predictor(ParallelDecoder):
    """This rank's part of the main model and of the depths."""

    def __init__(self, config: ModelConfig, group: Group, depth: int, *decoder: Any) -> None:
        super().__init__(config, group, *decoder)
        self.mtp = nn.ModuleList(Depth(self.config) for _ in range(depth))

    def forward(self, shifts: list[Batch]) -> Tensor:  # type: ignore[override]
        """The batch shifted by 0 … D → L^0 … L^D over this rank's tokens, [D + 1]."""
        (tokens, labels), *later = shifts
        s = tokens.shape[1]
        h = self.model.norm(self.blocks(self.embed(tokens), self.model.layers, s))  # [b, s, h]: h^0
        losses = [self.head(h, labels)]
        for depth, (tokens, labels) in zip(self.mtp, later, strict=True):
            e = self.embed(tokens)  # [b, s, h]
            both = torch.cat((depth.hnorm(h), depth.enorm(e)), -1)  # [b, s, 2h]
            h = depth.norm(self.blocks(depth.eh_proj(both), [depth.layer], s))  # [b, s, h]: h^k
            losses.append(self.head(h, labels))
        return torch.stack(losses)

    def head(self, h: Tensor, labels: Tensor) -> Tensor:
        """h^k [b, s, h] and labels [b, s] → mean cross-entropy, a scalar."""
        (logits,) = column_parallel(h, self.group, self.lm_head.weight)  # [b, s, v]
        return mean_loss(logits, labels, self.start, self.group)


class SequencePredictor(Predictor, SequenceParallelDecoder):
    """The same with sequence parallelism: [s/t, b, h] in place of [b, s, h] between the blocks."""

    def head(self, h: Tensor, labels: Tensor) -> Tensor:
        labels = labels.t()
        (logits,) = self.columns(h, self.group, len(labels), self.lm_head.weight)  # [s, b, v]
        return mean_loss(logits, labels, self.start, self.group)
