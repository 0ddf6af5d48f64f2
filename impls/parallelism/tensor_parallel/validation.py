"""Validation under tensor parallelism by a user who also wants the logits, say for accuracies: each rank's part of the
vocabulary is gathered, and the cross-entropy is the plain one of whole logits.

    training      logits [b, s, v] stay on their ranks      cross-entropy over t ranks (vocabulary.py)
    validation    logits [b, s, V] on every rank            cross-entropy on each rank by itself, the same everywhere

    b sequences of a micro-batch   s sequence   V vocab_size   v = V/t   t ranks
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.spec import Batch, Unsupported
from impls.common.decoder import cross_entropy
from impls.common.mesh import device, share
from impls.parallelism.tensor_parallel.operators import gather

if TYPE_CHECKING:
    from impls.parallelism.tensor_parallel.reference import ParallelDecoder, TensorParallel


def whole_logits(model: "ParallelDecoder", tokens: Tensor) -> Tensor:
    """Token ids [b, s] → [b, s, V], the same on every rank."""
    x = model.blocks(model.embed(tokens), model.model.layers, tokens.shape[1])  # [b, s, h]
    part = model.lm_head(model.model.norm(x))  # [b, s, v]
    return gather(part, model.group)


class Validated:
    """The loss of a step is that of a validation pass over its batch, before the training pass."""

    def __init__(self, training: "TensorParallel") -> None:
        work, t = training.workload, training.topology.tp
        if work.model.vocab_size % t:
            raise Unsupported(f"parts of logits are gathered that are equal; tp {t}: {work.model.vocab_size} rows")
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
