"""Runs a plan on one rank, slot by slot: what the slot needs arrives, it is computed, what it gives is sent.

    F    activations [b, s, h] from the previous stage ─▶ this stage's, for the next one
    B    gradients [b, s, h] from the next stage ─▶ the inputs' gradients, for the previous one
    W    the weights' gradients, from what B has left

A stage is computed layer by layer, and each layer has an autograd graph of its own. So the two passes of an F&B slot
can take turns: a layer of one micro-batch forward, a layer of another backward. In DualPipe a layer with experts starts
its all-to-all and lets the other pass compute until it has arrived. The layers of these stages send nothing: nothing
is hidden here, and F&B takes F + B + W.

    b sequences of a micro-batch   s sequence   h hidden_size   m micro-batches
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from harness.spec import Batch, Span, Spans
from impls.common.mesh import device
from impls.common.routers import routers, taken
from impls.common.watch import now
from impls.parallelism.pipeline_parallel.messages import Messages, channels
from impls.parallelism.pipeline_parallel.plan import Action, Plan, Slot, consumer
from impls.parallelism.pipeline_parallel.stage import Product, Stage, weight_gradients


class Executor:
    """``pipelines``: the ranks of every pipeline of the mesh; ``stages``: those that this rank holds. ``versions``:
    each stage's (see asynchronous.py), if the plan has some."""

    def __init__(
        self, plan: Plan, pipelines: list[list[int]], stages: Mapping[int, Stage], versions: Any = None
    ) -> None:
        self.plan, self.stages, self.versions = plan, stages, versions
        self.rank = plan.rank_of[min(stages)]
        self.routers = {number: routers(stage) for number, stage in stages.items()}  # they have losses of their own
        self.groups = {channel: dist.new_subgroups_by_enumeration(pipelines)[0] for channel in channels(plan)}
        if any(action.kind == "W" for action in plan.actions[self.rank]):
            for stage in stages.values():
                stage.defer()
        # By stage and micro-batch:
        self.kept: dict[
            tuple[int, int], list[tuple[Tensor, list[GradientEdge]]]
        ] = {}  # F → B: each layer's input and graphs
        self.later: dict[tuple[int, int], list[Product]] = {}  # B → W
        self.given: dict[Action, Tensor] = {}  # what the slot's actions have for other stages

    def run(self, micro_batches: Sequence[Batch], weights: Sequence[float], spans: Spans | None = None) -> Tensor:
        """The micro-batches' losses [m], each times its weight, where this rank has a last stage; zeros elsewhere.
        Leaves the gradients of their sum in the parameters."""
        self.micro_batches, self.weights = micro_batches, weights
        self.losses = torch.zeros(len(micro_batches), device=device(), dtype=torch.float64)  # [m]
        messages = Messages(self.plan, self.rank, self.groups, self.message())
        for slot in self.plan.slots[self.rank]:
            # 1. What the slot needs arrives; what comes after it may.
            passes = {action: self.steps(action, messages.receive(action)) for action in slot}
            start = now(spans)
            for action in slot:
                messages.ahead(action)
            # 2. The slot is computed.
            seconds = in_turn(passes, spans)
            # 3. What it gives is sent.
            for action, tensor in self.given.items():
                messages.send(tensor, consumer(action, self.plan))
            self.given.clear()
            if spans is not None:
                record(spans, slot, start, seconds, now(spans))
        messages.finish()
        return self.losses

    def message(self) -> Tensor:
        """The shape [b, s, h] and the type of what stages send, without values."""
        stage, tokens = next(iter(self.stages.values())), self.micro_batches[0].inputs
        return torch.empty(stage.message(tokens), dtype=next(stage.parameters()).dtype, device="meta")

    def steps(self, action: Action, arrived: Tensor | None) -> Iterator[None]:
        """Computes the action, a layer a step."""
        match action.kind:
            case "F":
                yield from self.forward(action, arrived)
            case "B":
                yield from self.backward(action, arrived)
            case "W":
                weight_gradients(self.later.pop((action.stage, action.micro)))
            case "U":
                self.versions[action.stage].update(action.micro)

    def forward(self, action: Action, x: Tensor | None) -> Iterator[None]:
        """``x`` [b, s, h]; the first stage has token ids [b, s] instead."""
        _, stage, micro = action
        module, batch = self.stages[stage], self.micro_batches[micro]
        kept = self.kept[stage, micro] = []
        x = batch.inputs if x is None else x
        for part in self.versions[stage].parts(micro, batch) if self.versions else module.parts(batch):
            x = x.detach().requires_grad_(x.is_floating_point())
            out = part(x)
            kept.append((x, [get_gradient_edge(y) for y in (out, *taken(self.routers[stage], batch.labels))]))
            x = out
            yield
        if module.last:
            self.losses[micro] = x.detach() * self.weights[micro]
        else:
            self.given[action] = x.detach()  # [b, s, h]

    def backward(self, action: Action, dy: Tensor | None) -> Iterator[None]:
        """``dy`` [b, s, h], the gradient of the stage's output; losses, the last stage's or routers', a weight."""
        _, stage, micro = action
        module, kept = self.stages[stage], self.kept.pop((stage, micro))
        weight = torch.full((), self.weights[micro], device=device(), dtype=torch.float64)
        dy = weight if dy is None else dy
        while kept:
            x, graphs = kept.pop()
            torch.autograd.backward(graphs, [dy, *[weight] * (len(graphs) - 1)])
            dy = x.grad
            yield
        if not module.first:
            self.given[action] = dy
        if module.later:
            self.later[stage, micro], module.later[:] = module.later.copy(), []


def in_turn(passes: Mapping[Action, Iterator[None]], spans: Spans | None) -> dict[Action, float]:
    """Computes a slot: a layer forward, a layer backward, and so on; W follows its B. Returns each action's seconds."""
    seconds = dict.fromkeys(passes, 0.0)
    sides = [[a for a in passes if a.kind == "F"], [a for a in passes if a.kind != "F"]]
    while any(sides):
        for side in sides:
            if side:
                start, action = now(spans), side[0]
                if next(passes[action], "done") == "done":
                    side.pop(0)
                seconds[action] += now(spans) - start
    return seconds


def record(spans: Spans, slot: Slot, start: float, seconds: Mapping[Action, float], end: float) -> None:
    """A slot's actions as if they had been one after the other, from ``start`` to ``end``; an update belongs to the
    backward pass before it."""
    for action in slot[:-1]:
        spans.append(Span(*action, start, start + seconds[action]))
        start += seconds[action]
    if slot[-1].kind == "U":
        spans[-1] = spans[-1]._replace(end=end)
    else:
        spans.append(Span(*slot[-1], start, end))
