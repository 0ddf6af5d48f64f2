"""Activations are what autograd keeps between the forward and the backward pass, and nothing else."""

import pytest
import torch
from torch import nn

from harness.meter.saved import Saved
from harness.spec import Workload
from impls.common.activations import saved
from impls.common.data import batch
from impls.common.weights import build_model

SIZE = 64 * 64 * 4  # bytes


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("name", ["tiny", "tied"])
def test_the_decoder_keeps_what_its_formula_says(name: str, dtype: str) -> None:
    work = Workload(dtype=dtype, sequence_length=31)
    if name == "tied":
        work = work.with_(model=type(work.model)(tie_word_embeddings=True, num_hidden_layers=2, hidden_size=96))
    model, tokens = build_model(work), batch(work, 0)
    with Saved() as activations:
        model(*tokens).backward()
    assert activations.peak == saved(work, work.tokens)


def test_the_peak_of_two_micro_batches_is_that_of_one() -> None:
    x, weight = torch.ones(64, 64, requires_grad=True), torch.ones(64, 64)
    with Saved() as once:
        (x * weight).exp().sum().backward()
    with Saved() as twice:
        for _ in range(2):
            (x * weight).exp().sum().backward()
    assert once.peak == twice.peak == SIZE  # exp keeps its output


def test_a_graph_that_is_kept_is_counted_on() -> None:
    x = torch.ones(64, 64, requires_grad=True)
    with Saved() as activations:
        kept = [x.exp() for _ in range(3)]
    assert activations.peak == 3 * SIZE
    assert len(kept) == 3


def test_weights_views_of_weights_and_what_was_there_before_are_not_counted() -> None:
    layer, before = nn.Linear(64, 64, bias=False), torch.ones(64, 64)
    with Saved() as activations:
        layer(before).sum().backward()
        (before.clone().requires_grad_() @ layer.weight.T).sum().backward()
    assert activations.peak == SIZE  # the clone alone


def test_one_storage_is_counted_once() -> None:
    x = torch.ones(64, 64, requires_grad=True)
    with Saved() as activations:
        y = x.clone()
        z = (y[:32] * y[32:]).sum() + (y * y).sum()
        z.backward()
    assert activations.peak == SIZE
