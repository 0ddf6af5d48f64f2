"""Gradient accumulation (Goyal et al. 2017, §3; Ott et al. 2018, §3.4): k micro-batches on N ranks make one update.

The loss of a batch is a mean over its tokens, and so must be the sum of its parts (Goyal et al., remark 3: the loss is
normalised by the size of the whole batch, not by that of each worker's part):

    L = 1/T · Σ_n Σ_i Σ_t ℓ_nit = Σ_n Σ_i T_ni/T · mean_t ℓ_nit          T = Σ_n Σ_i T_ni

A mean of means, 1/(N·k) · Σ_n Σ_i mean_t ℓ_nit, is the same if all T_ni are equal. If sequences differ in length,
it gives the tokens of short micro-batches more weight than those of long ones, which is a different objective.

    N ranks   k micro-batches a rank   ℓ_nit loss of token t in micro-batch i of rank n   T_ni its tokens with a label

Nothing is sent before the last micro-batch, and each one's activations are freed before the next begins.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import share
from impls.parallelism.data_parallel.reference import Bucketed


def token_weights(labels: list[Tensor]) -> Tensor:
    """T_ni/T of this rank's micro-batches, [k] float64; the ranks agree on T by exchanging one number each."""
    counts = torch.stack([(part >= 0).sum() for part in labels])
    total = counts.sum()
    dist.all_reduce(total)
    return counts.double() / total


def mean_weights(labels: list[Tensor]) -> Tensor:
    """1/(N·k), [k] float64."""
    parts = len(labels) * dist.get_world_size()
    return torch.full((len(labels),), 1 / parts, dtype=torch.float64, device=labels[0].device)


class Accumulation(Bucketed):
    """Data parallelism with buckets, which are sent while the last micro-batch's backward pass goes on."""

    def __init__(self, workload: Workload, by_tokens: bool) -> None:
        super().__init__(workload)
        self.weights = token_weights if by_tokens else mean_weights

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = [micro for micro, _ in share(batch, self.workload, self.rank, self.ranks)]
        weights = self.weights([micro.labels for micro in micro_batches])
        total = torch.zeros_like(weights[0])
        for index, (micro, weight) in enumerate(zip(micro_batches, weights, strict=True)):
            with self._sending(index == len(micro_batches) - 1):
                loss = self.model(*micro) * weight
                loss.backward()
            total += loss.detach()
        for bucket in self.buckets:
            bucket.wait()
        return total * self.ranks


def build(workload: Workload, topology: Topology, by_tokens: bool = True) -> Accumulation:
    return Accumulation(workload, by_tokens)
