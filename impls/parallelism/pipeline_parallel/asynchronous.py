"""PipeDream (Narayanan et al. 2019, "PipeDream: Generalized Pipeline Parallelism for DNN Training", §3.2-3.3) and
PipeDream-2BW (Narayanan et al. 2021, "Memory-Efficient Pipeline-Parallel DNN Training", §3.1): no flush at an update.

A step's batch is a sequence of mini-batches, and a stage s of p updates its weights W_s after each. With lr η and the
gradient of the t-th mini-batch's loss:

    PipeDream    W_s(t+1) = W_s(t) − η ∇f(W_0(t−p+1), …, W_s(t−p+1+s), …, W_(p−1)(t))    a micro-batch is a mini-batch
    2BW          W(t+1) = W(t) − η ∇f(W(t−1))                                           p micro-batches are one

The bubble is that of 1F1B, (p − 1)/(m + p − 1), once a step of m micro-batches: filling and draining. GPipe with as
many updates as 2BW, m/p, fills and drains at each and idles (p − 1)/(2p − 1). What it costs is memory, for the versions
of the weights that are still needed: p − s of them in PipeDream, 2 in 2BW.

No engine that can be installed has either; PipeDream's own repository cannot be.
"""

import itertools
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import cut, gather, placed, token_share
from impls.parallelism.pipeline_parallel.executor import run
from impls.parallelism.pipeline_parallel.reference import Pipeline
from impls.parallelism.pipeline_parallel.schedules import Plan
from impls.parallelism.pipeline_parallel.versions import Versions


class Asynchronous(Pipeline):
    """A stage updates its weights inside the step, as soon as its backward passes of a mini-batch are done, with their
    gradient averaged over data-parallel ranks. A mini-batch's loss is the mean over its own tokens. The step is drained
    at its end, since a step is what is judged: no delay reaches into the next one.

    backward() gives the mean loss over the batch's tokens, each mini-batch's at the weights it was computed with;
    gradients() the sum of the mini-batches' gradients, as each made an update of its own: under SGD the step has then
    changed the weights by −lr times that sum. It is kept for whoever asks; training alone would not hold it.
    """

    def __init__(self, workload: Workload, topology: Topology, plan: Plan) -> None:
        super().__init__(workload, topology, plan)
        self.summed = [torch.zeros_like(weight) for weight in self.weights.values()]
        self.versions = {
            s: Versions(stage, self.weights, plan.versions[s], self.step) for s, stage in self.stages.items()
        }

    def backward(self, batch: Batch) -> Tensor:
        torch._foreach_zero_(self.summed)
        micro_batches, weights, shares = mini_batches(batch, self.workload, self.topology, self.dp_rank, self.plan)
        losses = run(self.plan, self.stages, micro_batches, weights, self.groups, self.spans, self.versions)
        total = torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()
        dist.all_reduce(total, group=self.pp)
        return total

    def step(self) -> None:
        """One update, with the gradients that are at the newest weights."""
        self.reduce()
        torch._foreach_add_(self.summed, [p.grad for p in self.weights.values()])
        self.optimizer.step()

    def update(self) -> None:
        """Has nothing left to do."""

    def gradients(self) -> Mapping[str, Tensor]:
        return gather(dict(zip(self.weights, self.summed, strict=True)), self.pp)


def mini_batches(
    batch: Batch, workload: Workload, topology: Topology, dp_rank: int, plan: Plan
) -> tuple[list[Batch], list[float], list[float]]:
    """This rank's micro-batches; what each one's mean loss weighs in that of its mini-batch, which is the micro-batches
    of an update on all data-parallel ranks; and what its mini-batch weighs in the batch."""
    ranks = [list(cut(batch, workload, rank, topology.dp)) for rank in range(topology.dp)]
    weights, shares = [], []
    ends = [action.micro + 1 for action in plan.actions[0] if action.kind == "U"]
    for begin, end in itertools.pairwise([0, *ends]):
        members = [micro for each in ranks for micro in each[begin:end]]
        mini_batch = Batch(*(torch.cat(tensors) for tensors in zip(*members, strict=True)))
        for micro in ranks[dp_rank][begin:end]:
            weights.append(token_share(micro, mini_batch) * topology.dp)
            shares.append(token_share(mini_batch, batch))
    return [placed(micro) for micro in ranks[dp_rank]], weights, shares
