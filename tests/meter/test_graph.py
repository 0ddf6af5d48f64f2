"""Live autograd nodes, without those that only wait for the garbage collector."""

import gc

import torch

from harness.meter.graph import nodes


class Ring:
    """It holds a tensor and itself."""

    def __init__(self) -> None:
        self.ring, self.loss = self, torch.ones(2, requires_grad=True).exp().sum()


def test_a_graph_that_is_held_counts_and_one_in_a_dead_cycle_does_not() -> None:
    gc.disable()
    try:
        before = nodes()
        held = Ring()
        assert nodes() == before + 3
        del held
        assert nodes() == before
    finally:
        gc.enable()
