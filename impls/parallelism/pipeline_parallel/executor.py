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
from impls.parallelism.pipeline_parallel.messages import Messages, channels
from impls.parallelism.pipeline_parallel.plan import Action, Plan, Slot, consumer
from impls.parallelism.pipeline_parallel.stage import Stage, weight_gradients
from impls.parallelism.pipeline_parallel.watch import now


class Executor:
    """``pipelines``: the ranks of every pipeline of the mesh; ``stages``: those that this rank holds."""

    def __init__(self, plan: Plan, pipelines: list[list[int]], stages: Mapping[int, Stage]) -> None:
        self.plan, self.stages, self.rank = plan, stages, plan.rank_of[min(stages)]
        self.groups = {channel: dist.new_subgroups_by_enumeration(pipelines)[0] for channel in channels(plan)}
        # By stage and micro-batch:
        self.kept: dict[tuple[int, int], list[tuple[Tensor, GradientEdge]]] = {}  # F → B, of each layer
        self.later: dict[tuple[int, int], list[Any]] = {}  # B → W

    def run(
        self,
        micro_batches: Sequence[Batch],
        weights: Sequence[float],
        spans: Spans | None = None,
        versions: Mapping[int, Any] | None = None,
    ) -> Tensor:
        """The micro-batches' losses [m], each times its weight, where this rank has the last stage, else zeros. Leaves
        the gradients of their sum in the parameters. ``versions`` of the stages' weights, if the plan has some."""
        losses = torch.zeros(len(micro_batches), device=device(), dtype=torch.float64)  # [m]
        stage = next(iter(self.stages.values()))
        like = torch.empty(stage.message(micro_batches[0].inputs), dtype=stage.dtype, device="meta")  # [b, s, h]
        messages = Messages(self.plan, self.rank, self.groups, like)
        given: dict[Action, Tensor] = {}

        def steps(action: Action, needed: Tensor | None) -> Iterator[None]:
            """The action, a layer a step."""
            kind, stage, micro = action
            batch, weight, module = micro_batches[micro], weights[micro], self.stages[stage]
            if kind == "F":
                parts = versions[stage].parts(micro, batch) if versions else module.parts(batch)
                out = yield from self.forward(action, parts, batch.inputs if needed is None else needed)
                if module.last:
                    losses[micro] = out * weight
                else:
                    given[action] = out
            elif kind == "B":
                dy = torch.tensor(weight, device=device(), dtype=like.dtype) if needed is None else needed
                dx = yield from self.backward(action, dy)
                if not module.first:
                    given[action] = dx
            else:
                weight_gradients(self.later.pop((stage, micro)))

        for slot in self.plan.slots[self.rank]:
            if slot[0].kind == "U":
                versions[slot[0].stage].update(slot[0].micro)
                continue
            # 1. What the slot needs arrives.
            passes = {action: steps(action, messages.receive(action)) for action in slot}
            # 2. It is computed.
            start = now(spans)
            seconds = in_turn(passes, spans)
            # 3. What it gives is sent.
            for action, tensor in given.items():
                messages.send(tensor, consumer(action, self.plan))
            given.clear()
            if spans is not None:
                for action in slot:
                    spans.append(Span(*action, start, start := start + seconds[action]))
        messages.finish()
        return losses
