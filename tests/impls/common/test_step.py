"""A rank's micro-batches: what passes the engine, and the loss of a model that is applied twice."""

import torch
from torch import Tensor, nn

from harness.spec.named import NAMED
from impls.common.data import batch
from impls.common.step import mean_loss
from impls.common.weights import build_model

TWICE = NAMED["applied_twice"].with_(dtype="fp64")


class Engine(nn.Module):
    """Counts the sequences that pass it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.passed = module, 0

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.passed += len(inputs)
        loss: Tensor = self.module(inputs, labels)
        return loss


def test_half_of_the_sequences_pass_the_engine_and_the_loss_is_the_mean_over_the_labels_of_all() -> None:
    engine, whole = Engine(build_model(TWICE)), batch(TWICE, 0)
    first, second = whole.labels.chunk(2)
    assert (first >= 0).sum() != (second >= 0).sum()  # their means have unequal weights
    loss = mean_loss(engine, whole, TWICE)
    assert engine.passed == len(whole.inputs) // 2
    torch.testing.assert_close(loss, engine.module(*whole), rtol=1e-12, atol=0.0)


def test_without_it_all_sequences_pass_the_engine() -> None:
    engine, whole = Engine(build_model(TWICE)), batch(TWICE, 0)
    mean_loss(engine, whole, TWICE.with_(applied_twice=False))
    assert engine.passed == len(whole.inputs)
