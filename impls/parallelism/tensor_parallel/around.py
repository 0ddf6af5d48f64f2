"""What users put around a tensor-parallel model: a validation pass that also gives them the logits, say for accuracies,
and a head of their own, say one that is fused with its loss.

    training      logits [b, s, v] stay on their ranks          cross-entropy over t ranks (vocabulary.py)
    validation    logits [b, s, V] are gathered on every rank   cross-entropy on each rank by itself
    own head      x ─ f ─ turned to [s, b, h] ─ A_i             f is given a strided gradient to sum: dx is turned back

    b sequences of a micro-batch   s sequence   h hidden_size   V vocab_size   v = V/t   t ranks
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.spec import Batch, Trainer, Unsupported
from impls.common.decoder import cross_entropy, mean
from impls.common.mesh import device, share
from impls.parallelism.tensor_parallel.operators import copy, gather
from impls.parallelism.tensor_parallel.vocabulary import CrossEntropy

if TYPE_CHECKING:
    from impls.parallelism.tensor_parallel.reference import ParallelDecoder, TensorParallel


def loss_of_own_head(model: "ParallelDecoder", x: Tensor, labels: Tensor) -> Tensor:
    """[b, s, h] and [b, s] → mean cross-entropy, the same scalar on every rank."""
    x, labels = copy(model.model.norm(x), model.group).transpose(0, 1).contiguous(), labels.T  # [s, b, h], [s, b]
    logits = model.lm_head(x)  # [s, b, v]
    return mean(CrossEntropy.apply(logits, labels, model.start, model.group), labels)


def whole_logits(model: "ParallelDecoder", tokens: Tensor) -> Tensor:
    """Token ids [b, s] → [b, s, V], the same on every rank."""
    x = model.blocks(model.embed(tokens), model.model.layers, tokens.shape[1])  # [b, s, h]
    part = model.lm_head(model.model.norm(x))  # [b, s, v]
    return gather(part, model.group)


class Validated:
    """The loss of a step is that of a validation pass over its batch, before the training pass."""

    def __init__(self, training: "TensorParallel") -> None:
        rows, t = training.workload.model.vocab_size, training.topology.tp
        if rows % t:
            raise Unsupported(f"logits are gathered here in equal parts, and tp {t} does not divide {rows}")
        self.training = training
        self.update, self.gradients, self.parameters = training.update, training.gradients, training.parameters

    def backward(self, batch: Batch) -> Tensor:
        self.training.model.eval()
        loss = self.validate(batch)
        self.training.model.train()
        self.training.backward(batch)
        return loss

    @torch.no_grad()
    def validate(self, batch: Batch) -> Tensor:
        mine, dp = self.training, self.training.topology.dp
        total = torch.zeros((), device=device(), dtype=torch.float64)
        for (tokens, labels), part in share(batch, mine.workload, mine.dp_rank, dp):
            total += cross_entropy(whole_logits(mine.model, tokens), labels) * part * dp
        return total


def put_around(training: "TensorParallel", validated: bool = False, own_head: bool = False) -> Trainer:
    if own_head:
        training.model.loss = partial(loss_of_own_head, training.model)
    return Validated(training) if validated else training
