"""Data parallelism with exactly one thing broken."""

import itertools
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LATER_GRADIENT, REPLAYED, TRAINED, UPDATE, Fault
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
        where="step 1, gradient of model.layers.0.self_attn.q_norm.weight, in all 2 parts",
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
    "losses_kept_with_their_graphs": Fault("ddp", "dp2", {"memory": {"fp32": {"growth", "states"}}}),
    "a_second_all_reduce": Fault("ddp", "dp2", {"traffic": {"fp32": {"bytes"}}}),
}
