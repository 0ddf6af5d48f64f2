"""Chen et al. 2016: a layer's activations are dropped, and recomputed in the backward pass."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from harness.spec import Batch, Topology, Workload
from impls.common.decoder import Layer
from impls.common.plain import Plain


class Recomputed(Plain):
    def __init__(self, workload: Workload, recompute: bool, same_draws: bool = True) -> None:
        super().__init__(workload)
        if recompute:
            for layer in self.model.model.layers:
                layer.forward = Again(layer, same_draws)

    def backward(self, batch: Batch) -> Tensor:
        torch.manual_seed(self.workload.seed)  # the same random numbers in every variant
        return super().backward(batch)


class Again:
    def __init__(self, layer: Layer, same_draws: bool) -> None:
        self.forward, self.same_draws = layer.forward, same_draws

    def __call__(self, *inputs: Tensor) -> Tensor:
        output: Tensor = checkpoint(self.forward, *inputs, use_reentrant=False, preserve_rng_state=self.same_draws)
        return output


def build(workload: Workload, topology: Topology, recompute: bool) -> Recomputed:
    return Recomputed(workload, recompute)


def other_draws(workload: Workload, topology: Topology, recompute: bool) -> Recomputed:
    """A planted fault: the random state is not restored, so a recomputed layer drops other elements."""
    return Recomputed(workload, recompute, same_draws=False)
