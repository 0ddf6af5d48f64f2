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
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from harness.spec import Batch, Spans, Topology, Workload
from impls.common.mesh import cut, gather, placed, token_share
from impls.common.sums import mean_flat
from impls.parallelism.pipeline_parallel.executor import Executor
from impls.parallelism.pipeline_parallel.part import Part
from impls.parallelism.pipeline_parallel.plan import Plan
from impls.parallelism.pipeline_parallel.stage import Stage

Set = list[nn.Parameter]


class Versions:
    """The versions of a stage's weights that micro-batches in flight still need, beside the newest (weight stashing).

    A version is a set of parameters of its own: a forward pass leaves them in autograd's graph, so its backward pass
    takes the same ones, whatever the newest are by then. An update goes into a set that nobody needs any more; sets are
    kept from step to step, as a pipeline that is never drained has them always.

    ``weights`` by name: the newest version, which ``step`` updates in place with the gradients it finds there;
    ``numbers``: the version of each micro-batch (``Plan.versions``).
    """

    def __init__(
        self, stage: Stage, weights: Mapping[str, nn.Parameter], numbers: Sequence[int], step: Callable[[], None]
    ) -> None:
        self.stage, self.names, self.weights = stage, list(weights), list(weights.values())
        self.numbers, self.step = numbers, step
        self.newest = 0
        self.held = {0: [nn.Parameter(weight.data) for weight in self.weights]}
        self.free: list[Set] = []

    def begin(self) -> None:
        """Counts updates from here on. No micro-batch may be in flight."""
        self.held, self.newest = {0: self.held[self.newest]}, 0

    def parts(self, micro: int, batch: Batch) -> list[Callable[[Tensor], Tensor]]:
        """The stage in one, computed with this micro-batch's version."""
        used = dict(zip(self.names, self.held[self.numbers[micro]], strict=True))
        return [lambda x: functional_call(self.stage, used, (x, batch.labels))]

    def update(self, micro: int) -> None:
        """Of the newest weights, with the gradients that the mini-batch which ends here left at its own version."""
        for weight, used in zip(self.weights, self.held[self.numbers[micro]], strict=True):
            weight.grad, used.grad = used.grad, None
        needed = {*self.numbers[micro + 1 :]}
        self.free += [self.held.pop(v) for v in list(self.held) if v not in needed and v != self.newest]
        if self.newest in needed:
            into = self.room()
            for weight, new in zip(self.weights, into, strict=True):
                weight.data = new.data.copy_(weight.data)
        else:
            into = self.held.pop(self.newest)
        self.step()
        self.newest += 1
        self.held[self.newest] = into

    def room(self) -> Set:
        """For one version more."""
        return self.free.pop() if self.free else [nn.Parameter(torch.empty_like(weight)) for weight in self.weights]


class Asynchronous:
    """A stage updates its weights inside the step, as soon as its backward passes of a mini-batch are done, with their
    gradient averaged over data-parallel ranks. A mini-batch's loss is the mean over its own tokens. The step is drained
    at its end, since a step is what is judged: no delay reaches into the next one.

    backward() gives the mean loss over the batch's tokens, each mini-batch's at the weights it was computed with;
    gradients() the sum of the mini-batches' gradients, as each made an update of its own: under SGD the step has then
    changed the weights by −lr times that sum. It is kept for whoever asks; training alone would not hold it.
    """

    def __init__(self, workload: Workload, topology: Topology, plan: Plan) -> None:
        self.workload, self.topology, self.plan = workload, topology, plan
        self.part = part = Part(workload, topology, plan)
        self.summed = [torch.zeros_like(weight) for weight in part.weights.values()]
        self.versions = {
            s: Versions(stage, part.weights, plan.versions[s], self.step) for s, stage in part.stages.items()
        }
        self.executor = Executor(plan, part.pipelines, part.stages, self.versions)
        self.spans: Spans | None = None
        self.parameters = part.parameters

    def backward(self, batch: Batch) -> Tensor:
        torch._foreach_zero_(self.summed)
        for versions in self.versions.values():
            versions.begin()
        micro_batches, weights, shares = mini_batches(batch, self.workload, self.topology, self.part.dp_rank, self.plan)
        losses = self.executor.run(micro_batches, weights, self.spans)  # [m]
        total = torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()
        dist.all_reduce(total, group=self.part.pp)
        return total

    def step(self) -> None:
        """One update, with the gradients that are at the newest weights."""
        gradients = [p.grad for p in self.part.weights.values()]
        mean_flat(gradients, self.part.dp)
        torch._foreach_add_(self.summed, gradients)
        self.part.optimizer.step()

    def update(self) -> None:
        """Has nothing left to do."""

    def gradients(self) -> Mapping[str, Tensor]:
        return gather(dict(zip(self.part.weights, self.summed, strict=True)), self.part.pp)

    def record(self, spans: Spans | None) -> None:
        self.spans = spans


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
