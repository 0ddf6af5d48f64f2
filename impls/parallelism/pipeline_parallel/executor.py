"""Runs a schedule on one rank: computes its actions in order, and sends what other ranks wait for."""

from collections import defaultdict, deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from harness.spec import Batch, Span, Spans
from impls.common.mesh import device
from impls.common.watch import now
from impls.parallelism.pipeline_parallel.schedules import Action, Plan, consumer
from impls.parallelism.pipeline_parallel.stage import Stage, weight_gradients
from impls.parallelism.pipeline_parallel.versions import Versions

Group = dist.ProcessGroup
Channel = tuple[str, bool]  # kind, and whether to a higher rank


class Cut(torch.autograd.Function):
    """Where a stage's output leaves the rank. The graph goes on from an empty tensor, so that the output itself is
    free as soon as it is sent; what arrives in ``gradient`` later is its gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, output: Tensor, gradient: list[Tensor]) -> Tensor:
        ctx.gradient = gradient
        return output.new_empty(0)

    @staticmethod
    def backward(ctx: FunctionCtx, _: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient.pop(), None


def channels(plan: Plan) -> list[Channel]:
    """What the plan's messages travel on: each kind and direction its own communicator, since NCCL's sends and receives
    of one pair of ranks wait for one another in the order in which each of the two posts them."""
    found = set()
    for rank, actions in enumerate(plan.actions):
        for action in actions:
            if needed := consumer(action, plan):
                found.add((action.kind, plan.rank_of[needed.stage] - rank))
    return sorted({(kind, distance > 0) for kind, distance in found if distance})


class Messages:
    """Activations ("F") and their gradients ("B") between stages. What one rank sends another is received in the order
    in which it is sent, whatever the order in which it is needed: NCCL knows no tags. A sender's next message is
    awaited ahead of its need, so that it arrives while this rank computes; the first one on CPU ranks only, since NCCL
    opens a channel where both ends first use it, and each waits there for the other."""

    def __init__(self, plan: Plan, rank: int, groups: Mapping[Channel, Group], like: Tensor) -> None:
        self.rank, self.rank_of, self.groups, self.like = rank, plan.rank_of, groups, like
        self.sending: list[tuple[dist.Work, Tensor]] = []
        self.arrived: dict[Action, tuple[dist.Work | None, Tensor]] = {}
        # Messages to this rank, by sender and kind, in the sender's order; each named by the action that needs it.
        self.coming: dict[tuple[int, str], deque[Action]] = defaultdict(deque)
        for source, actions in enumerate(plan.actions):
            for action in actions:
                needed = consumer(action, plan)
                if needed and self.rank_of[needed.stage] == rank and source != rank:
                    self.coming[source, action.kind].append(needed)
        if device().type == "cpu":
            for source, kind in self.coming:
                self.expect(source, kind)

    def expect(self, source: int, kind: str) -> None:
        """Posts the receive of the sender's next message, if one is to come."""
        if queue := self.coming[source, kind]:
            buffer = torch.empty_like(self.like, device=device())
            work = dist.irecv(buffer, group=self.groups[kind, self.rank > source], group_src=source)
            self.arrived[queue.popleft()] = (work, buffer)

    def send(self, tensor: Tensor, action: Action) -> None:
        """Gives ``action`` what it needs."""
        target = self.rank_of[action.stage]
        if target == self.rank:
            self.arrived[action] = (None, tensor)
        else:
            group = self.groups[action.kind, target > self.rank]
            self.sending = [(work, kept) for work, kept in self.sending if not work.is_completed()]
            self.sending.append((dist.isend(tensor, group=group, group_dst=target), tensor))

    def receive(self, action: Action, source_stage: int) -> Tensor:
        """What ``action`` needs."""
        source = self.rank_of[source_stage]
        while action not in self.arrived:
            self.expect(source, action.kind)
        work, buffer = self.arrived.pop(action)
        if work is not None:
            work.wait()
        return buffer

    def finish(self) -> None:
        for work, _ in self.sending:
            work.wait()


def run(
    plan: Plan,
    stages: Mapping[int, Stage],
    micro_batches: list[Batch],
    weights: list[float],
    groups: Mapping[Channel, Group],
    spans: Spans | None = None,
    versions: Mapping[int, Versions] | None = None,
) -> Tensor:
    """One step's actions. ``weights`` of the micro-batches' mean losses; the gradients are those of their weighted sum.
    The weighted losses [m] are returned on the ranks that have a last stage, elsewhere 0. ``spans`` takes the time of
    each action; an update's counts as its backward pass's. ``versions`` of each stage's weights, if the plan has
    some."""
    shape, dtype = next((s.message(micro_batches[0].inputs), next(s.parameters()).dtype) for s in stages.values())
    rank = plan.rank_of[min(stages)]
    messages = Messages(plan, rank, groups, torch.empty(shape, dtype=dtype, device="meta"))
    losses = torch.zeros(len(micro_batches), device=device(), dtype=torch.float64)
    kept: dict[tuple[int, int], tuple[Tensor, Tensor, list[Tensor]]] = {}  # between forward and backward pass
    later: dict[tuple[int, int], list[Any]] = {}  # between backward pass and weights' gradients
    for stage_versions in (versions or {}).values():
        stage_versions.begin()
    for action in plan.actions[rank]:
        kind, stage, micro = action
        module = stages[stage]
        if kind == "F":
            x = micro_batches[micro].inputs if module.first else messages.receive(action, stage - 1)
            start = now(spans)
            if not module.first:
                messages.expect(plan.rank_of[stage - 1], "F")
                x.requires_grad_()
            compute = partial(versions[stage].forward, micro) if versions else module
            out = compute(x, micro_batches[micro].labels if module.last else None)
            gradient: list[Tensor] = []
            if module.last:
                out = out * weights[micro]
                losses[micro] = out.detach()
            else:
                messages.send(out.detach(), Action("F", stage + 1, micro))
                out = Cut.apply(out, gradient)
            kept[stage, micro] = x, out, gradient
        elif kind == "B":
            x, out, gradient = kept.pop((stage, micro))
            if not module.last:
                gradient.append(messages.receive(action, stage + 1))
            start = now(spans)
            if not module.last:
                messages.expect(plan.rank_of[stage + 1], "B")
            out.backward(None if module.last else torch.empty_like(out))
            del out
            if not module.first:
                messages.send(x.grad, Action("B", stage - 1, micro))
            if module.later:
                later[stage, micro] = list(module.later)
                module.later.clear()
        elif kind == "W":
            start = now(spans)
            weight_gradients(later.pop((stage, micro)))
        elif versions:
            versions[stage].update(micro)
            if spans:
                spans[-1] = spans[-1]._replace(end=now(spans))
            continue
        if spans is not None:
            spans.append(Span(kind, stage, micro, start, now(spans)))
    messages.finish()
    return losses
