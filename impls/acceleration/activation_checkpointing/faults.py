"""Activation checkpointing with exactly one thing broken."""

from typing import Any

import torch
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, Fault
from impls.acceleration.activation_checkpointing import reference, segment
from impls.acceleration.activation_checkpointing.grid import DROPPED

Segment = segment.Segment


def a_random_state_that_is_not_restored(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A replay drops other elements than the first run did."""
    segment.restore = lambda states: None
    return reference.build(workload, topology, **variant)


def a_random_state_left_behind(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """After a replay the generators are not put forward again, so that the next step draws this one's numbers."""
    restore, calls = segment.restore, [0]

    def every_other(states: segment.States) -> None:
        calls[0] += 1
        if calls[0] % 2:  # the second of a replay's two calls
            restore(states)

    segment.restore = every_other
    return reference.build(workload, topology, **variant)


def the_input_of_another_segment(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A segment is replayed from the input of the one before it."""
    forward = Segment.forward
    before: list[Tensor] = []

    def late(ctx: Any, run: Any, on_host: bool, policy: Any, *inputs: Tensor) -> Any:
        outputs = forward(ctx, run, on_host, policy, *inputs)
        ctx.save_for_backward(*(before or inputs))
        before[:] = [x.detach() for x in inputs]
        return outputs

    Segment.forward = staticmethod(late)
    return reference.build(workload, topology, **variant)


def an_input_without_its_gradient(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The gradient of a segment's third input, the values, is dropped."""
    backward = Segment.backward

    def without(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        found = list(backward(ctx, *gradients))
        found[5] = torch.zeros_like(found[5])
        return tuple(found)

    Segment.backward = staticmethod(without)
    return reference.build(workload, topology, **variant)


def the_first_output_alone(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Attention returns each half of the heads on its own, and the gradient of the second is lost."""
    attend, backward = reference.attend, Segment.backward

    def in_halves(*heads: Tensor) -> tuple[Tensor, ...]:
        return tuple(attend(*half) for half in zip(*(x.chunk(2, 1) for x in heads), strict=True))

    def first(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Any, ...]:
        return backward(ctx, gradient, *map(torch.zeros_like, others))

    Segment.backward = staticmethod(first)
    trainer = reference.build(workload, topology, **variant)
    for layer in trainer.model.model.layers:
        layer.self_attn.attend = lambda *heads: torch.cat(segment.segment(in_halves, *heads), 1)
    return trainer


def nothing_is_dropped(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A checkpoint in name alone: the segment runs with its graph."""
    reference.segment = lambda run, *inputs, **options: run(*inputs)
    return reference.build(workload, topology, **variant)


def a_copy_that_stays_on_the_device(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The input is copied to the host, and kept on the device as well."""
    forward = Segment.forward

    def both(ctx: Any, run: Any, on_host: bool, policy: Any, *inputs: Tensor) -> Any:
        ctx.inputs = inputs
        return forward(ctx, run, on_host, policy, *inputs)

    Segment.forward = staticmethod(both)
    return reference.build(workload, topology, **variant)


def a_segment_replayed_twice(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The second run's results are thrown away, and a third run is made."""
    backward = Segment.backward

    def twice(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            ctx.run(*ctx.saved_tensors)
        return backward(ctx, *gradients)

    Segment.backward = staticmethod(twice)
    return reference.build(workload, topology, **variant)


def a_policy_that_keeps_scores(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Attention's products and its softmax are kept too, s numbers a token and head."""
    aten = torch.ops.aten
    reference.EXPENSIVE = reference.EXPENSIVE | {aten.bmm.default, aten._softmax.default}
    return reference.build(workload, topology, **variant)


BITS = {"bits": {"fp32": {"tensors"}}}
WRONG = {"parity": {"fp32": GRADIENT, "bf16": GRADIENT}}
MORE = {"memory": {"fp32": {"activations"}, "bf16": {"activations"}}}
FAULTS = {
    "a_random_state_that_is_not_restored": Fault("recompute_layers", "dp1", BITS, workload=DROPPED),
    "a_random_state_left_behind": Fault("recompute_layers", "dp1", BITS, workload=DROPPED),
    "the_input_of_another_segment": Fault("recompute_layers", "dp1", WRONG),
    "an_input_without_its_gradient": Fault("recompute_attention", "dp1", WRONG),
    "the_first_output_alone": Fault("recompute_attention", "dp1", WRONG),
    "nothing_is_dropped": Fault("recompute_layers", "dp1", MORE),
    "a_copy_that_stays_on_the_device": Fault("recompute_offload", "dp1", MORE),
    "a_segment_replayed_twice": Fault("recompute_layers", "dp1", {"flops": {"fp32": {"step", "recomputed"}}}),
    "a_policy_that_keeps_scores": Fault("recompute_operators", "dp1", MORE),
}
