"""The memory held when the backward pass begins, through any call, is the memory that the forward pass keeps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import Variable

from harness.meter.backward import FirstBackward

SCALARS = 256  # bytes: losses, counts and weights of micro-batches, which the formula omits

Ranks = Callable[..., list[Any]]


@pytest.mark.parametrize("job", ["kept_by_decoders", "kept_by_tied_decoders"])
def test_the_decoder_keeps_what_its_formula_says(ranks: Ranks, job: str) -> None:
    (kept,) = ranks(job, 1)
    assert kept
    assert all(0 <= measured - promised < SCALARS for measured, promised in kept.values()), kept


def test_memory_that_a_function_keeps_outside_autograds_graph_is_seen(ranks: Ranks) -> None:
    (kept,) = ranks("kept_in_a_context", 1)
    assert kept == 2**20


@pytest.mark.parametrize(
    "begin",
    [
        lambda loss, x: loss.backward(),
        lambda loss, x: torch.autograd.grad(loss, [x]),
        lambda loss, x: Variable._execution_engine.run_backward(
            (loss,), (torch.ones(()),), False, False, (), True, True
        ),
    ],
    ids=["backward", "grad", "the engine itself"],
)
def test_the_first_backward_pass_is_noted_whoever_begins_it(begin: Callable[..., Any]) -> None:
    x, seen = torch.ones(2, requires_grad=True), []
    with FirstBackward(lambda: seen.append(len(seen)) or "noted") as first:
        assert first.noted is None
        for _ in range(2):
            begin(x.exp().sum(), x)
    assert (first.noted, seen) == ("noted", [0])
    engine = Variable._execution_engine
    assert not isinstance(engine, FirstBackward)
