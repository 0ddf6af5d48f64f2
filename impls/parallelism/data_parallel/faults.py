"""Data parallelism with exactly one thing broken."""

import itertools
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LATER_GRADIENT, REPLAYED, REPLICAS, TRAINED, UPDATE, Fault
from harness.spec.run import steps
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.parallelism.data_parallel import reference
from impls.parallelism.data_parallel.bucket import Bucket


def not_averaged(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Gradients are summed over ranks, and that is all."""

    def summed(*arguments: Any, scale: float, **keywords: Any) -> Tensor:
        return accumulate(*arguments, **keywords)

    reference.accumulate = summed
    return reference.build(workload, topology, **variant)


def a_rank_left_out(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """One parameter's gradient is each rank's own, of the right size but never reduced."""
    trainer = reference.build(workload, topology, **variant)
    parameter = trainer.model.get_parameter("model.layers.0.self_attn.q_norm.weight")
    backward, own = trainer.backward, Tensor()

    def keep(_: Tensor) -> None:
        nonlocal own
        own = parameter.grad * dist.get_world_size()

    def unreduced(batch: Batch) -> Tensor:
        loss = backward(batch)
        parameter.grad.copy_(own)
        return loss

    parameter.register_post_accumulate_grad_hook(keep)
    trainer.backward = unreduced
    return trainer


def clipped(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Gradients are clipped, which nobody asked for."""
    return reference.build(workload.with_(max_grad_norm=0.5), topology, **variant)


def larger_from_the_third_step_on(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Gradients are half as large again, but for the first two steps."""
    trainer = reference.build(workload, topology, **variant)
    backward, steps = trainer.backward, itertools.count(1)

    def enlarged(batch: Batch) -> Tensor:
        loss = backward(batch)
        if next(steps) >= 3:
            for parameter in trainer.model.parameters():
                parameter.grad.mul_(1.5)
        return loss

    trainer.backward = enlarged
    return trainer


def no_master_weights(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The optimizer steps the bfloat16 weights themselves, and a small step is rounded away."""

    class Narrow(Bucket):
        def __init__(self, parameters: list[nn.Parameter], workload: Workload) -> None:
            super().__init__(parameters, workload)
            self.master = self.weights
            self.optimizer = optimizer([self.master], workload)

    reference.Bucket = Narrow
    return reference.build(workload, topology, **variant)


def gradients_kept_twice(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A bucket keeps this rank's own gradient beside the sum."""

    class Twice(Bucket):
        def send(self) -> None:
            self.own = self.gradient.clone()
            super().send()

    reference.Bucket = Twice
    return reference.build(workload, topology, **variant)


def losses_kept_with_their_graphs(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each step's loss stays in a list, with the graph behind it and all that the graph keeps."""
    losses = []

    def keep(loss: Tensor) -> None:
        losses.append(loss)
        loss.backward(retain_graph=True)

    reference.accumulate = partial(accumulate, backward=keep)
    return reference.build(workload, topology, **variant)


def a_second_all_reduce(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each bucket's gradient is summed once more, and nobody looks at that sum."""

    class Again(Bucket):
        def wait(self) -> None:
            super().wait()
            dist.all_reduce(self.gradient.clone())

    reference.Bucket = Again
    return reference.build(workload, topology, **variant)


def zeroed_on_the_last_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """After the last update, the last rank's weights are zero."""
    trainer = reference.build(workload, topology, **variant)
    update, count = trainer.update, itertools.count(1)

    def zeroing() -> None:
        update()
        if next(count) == steps(workload) and dist.get_rank() == dist.get_world_size() - 1:
            for bucket in trainer.buckets:
                bucket.master.zero_()

    trainer.update = zeroing
    return trainer


def a_rank_that_no_longer_steps(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The last rank skips its last update."""
    trainer = reference.build(workload, topology, **variant)
    update, count = trainer.update, itertools.count(1)

    def skipping() -> None:
        if next(count) != steps(workload) or dist.get_rank() == 0:
            update()

    trainer.update = skipping
    return trainer


def _leaking(trainer: Trainer, size: int, first: int = 1) -> Trainer:
    """Each update from step ``first`` on leaves this many bytes behind."""
    update, count, kept = trainer.update, itertools.count(1), []

    def leak() -> None:
        update()
        if next(count) >= first:
            kept.append(torch.zeros(size // 4))

    trainer.update = leak
    return trainer


def a_small_leak(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each step leaves 16 KiB behind."""
    return _leaking(reference.build(workload, topology, **variant), 2**14)


def a_leak_that_begins_late(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """From the third step on, each leaves 1 MiB behind."""
    return _leaking(reference.build(workload, topology, **variant), 2**20, first=3)


def a_sum_of_losses_with_their_graphs(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """``total += loss`` without ``detach``: the graphs stay, though their tensors are freed."""
    total = torch.zeros(())

    def add(loss: Tensor) -> None:
        nonlocal total
        loss.backward()
        total = total + loss

    reference.accumulate = partial(accumulate, backward=add)
    return reference.build(workload, topology, **variant)


def traffic_in_every_fourth_step(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """In one step of four, the weights are broadcast again."""
    trainer = reference.build(workload, topology, **variant)
    update, count = trainer.update, itertools.count(1)

    def sending() -> None:
        update()
        if next(count) % 4 == 0:
            for bucket in trainer.buckets:
                dist.broadcast(bucket.weights, src=0)

    trainer.update = sending
    return trainer


def a_larger_peak(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """An update needs 8 MiB for a moment."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def needing() -> None:
        torch.zeros(2**21)
        update()

    trainer.update = needing
    return trainer


def a_call_for_each_parameter(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Buckets were asked for, but each has one parameter."""
    reference.SMALLEST = 1
    return reference.build(workload, topology, **variant)


FAULTS = {
    "not_averaged": Fault(
        "ddp",
        "dp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": GRADIENT | UPDATE}},
        where="step 1, gradient of ",
    ),
    "a_rank_left_out": Fault(
        "ddp_naive",
        "dp2",
        {"parity": {"fp32": GRADIENT | {"update"}, "bf16": {"gradient"}}},
        where="step 1, gradient of model.layers.0.self_attn.q_norm.weight, all over the tensor",
    ),
    "clipped": Fault(
        "ddp_no_sync",
        "dp2",
        {"parity": {"fp32": REPLAYED | TRAINED, "bf16": REPLAYED | UPDATE}},
        where="step 2, loss ",
    ),
    "larger_from_the_third_step_on": Fault(
        "ddp",
        "dp2",
        {"parity": {"fp32": LATER_GRADIENT, "bf16": LATER_GRADIENT}},
        where="step 3, gradient of ",
    ),
    "no_master_weights": Fault("ddp", "dp2", {"parity": {"bf16": REPLAYED}}),
    "gradients_kept_twice": Fault("ddp", "dp2", {"memory": {"fp32": {"states"}}}),
    "losses_kept_with_their_graphs": Fault("ddp", "dp2", {"memory": {"fp32": {"graph", "growth", "states"}}}),
    "zeroed_on_the_last_rank": Fault("ddp", "dp2", {"parity": {"fp32": REPLICAS, "bf16": REPLICAS}}),
    "a_rank_that_no_longer_steps": Fault("ddp", "dp3", {"parity": {"fp32": REPLICAS}}, workload="thorough"),
    "a_small_leak": Fault("ddp", "dp2", {"memory": {"fp32": {"growth"}}}),
    "a_leak_that_begins_late": Fault("ddp_no_sync", "dp2", {"memory": {"fp32": {"growth", "states"}}}),
    "a_sum_of_losses_with_their_graphs": Fault("ddp", "dp2", {"memory": {"fp32": {"graph"}}}),
    "traffic_in_every_fourth_step": Fault("ddp", "dp2", {"traffic": {"fp32": {"bytes"}}}),
    "a_larger_peak": Fault("ddp", "dp2", {"peers": {"fp32": {"peak"}}}),
    "a_call_for_each_parameter": Fault("ddp", "dp2", {"peers": {"fp32": {"calls"}}}),
    "a_second_all_reduce": Fault("ddp", "dp2", {"traffic": {"fp32": {"bytes"}}}),
}
