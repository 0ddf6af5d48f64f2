"""ZeRO with exactly one thing broken."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LATER_GRADIENT, REPLAYED, TRAINED, Fault
from impls.common.flat import flatten_gradients
from impls.parallelism.zero import optimizer, reference
from impls.parallelism.zero.hooks import Unit


def larger_rate(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The learning rate is two percent too large."""
    return reference.build(workload.with_(lr=workload.lr * 1.02), topology, **variant)


def no_weight_decay(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """AdamW without its W."""
    return reference.build(workload.with_(weight_decay=0.0), topology, **variant)


def a_shard_off_by_one(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The last rank's shard of the last layer's gradient begins one element too early."""
    trainer = reference.build(workload, topology, **variant)
    unit = trainer.stage.partitions[-2]  # its MLP; behind it comes the head
    add = unit.add
    if dist.get_rank() == dist.get_world_size() - 1:
        unit.add = lambda received: add(received.roll(1))
    return trainer


def weights_that_are_never_released(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Units are gathered as they should be, but their memory is not given back after a pass."""

    class Staying(Unit):
        def gather(self) -> None:
            if not self.whole:
                self.whole, self.wait = True, self.start_gather(self.weights, self.master)

        def release(self) -> None:
            self.whole = False

    reference.Unit = Staying
    return reference.build(workload, topology, **variant)


def weights_sent_in_float32(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Masters are gathered as they are, and rounded where they arrive: twice the bytes."""

    def gather(whole: Tensor, part: Tensor, group: dist.ProcessGroup) -> Callable[[], object]:
        arrived = whole.new_empty(whole.shape, dtype=part.dtype)
        work = dist.all_gather_into_tensor(arrived, part, group=group, async_op=True)

        def wait() -> None:
            work.wait()
            whole.copy_(arrived)

        return wait

    def unit(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> Unit:
        return Unit(parameters, group, partial(gather, group=group))

    reference.Unit = unit
    return reference.build(workload, topology, **variant)


def moments_in_bfloat16(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """AdamW's moments are rounded to bfloat16 after each step."""
    trainer = reference.build(workload, topology, **variant)
    step = trainer.stage.step

    def rounding() -> None:
        step()
        for state in trainer.stage.inner.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].copy_(state[name].bfloat16())

    trainer.stage.step = rounding
    return trainer


def epsilon_inside_the_root(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """AdamW divides by √(v̂ + ε)."""
    return reference.build(workload.with_(eps=workload.eps**0.5), topology, **variant)


def missing_gradients_from_the_step_before(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A bucket is sent with what it last held of a layer that this rank skipped."""
    last: dict[nn.Parameter, Tensor] = {}

    def flatten(parameters: Sequence[nn.Parameter], buffer: Tensor) -> None:
        for parameter in parameters:
            if parameter.grad is None and parameter in last:
                parameter.grad = last[parameter]
        flatten_gradients(parameters, buffer)
        last.update({parameter: parameter.grad.clone() for parameter in parameters if parameter.grad is not None})

    optimizer.flatten_gradients = flatten
    return reference.build(workload, topology, **variant)


def gradients_in_the_order_in_which_they_come(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The gradients that exist follow each other in a bucket, and ranks add them by their places."""

    def flatten(parameters: Sequence[nn.Parameter], buffer: Tensor) -> None:
        there = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
        size = sum(gradient.numel() for gradient in there)
        torch.cat([*there, buffer.new_zeros(buffer.numel() - size)], out=buffer)

    def in_one_bucket(parameters: Sequence[nn.Parameter]) -> list[Sequence[nn.Parameter]]:
        return [parameters]

    optimizer.flatten_gradients, optimizer.runs = flatten, in_one_bucket
    return reference.build(workload, topology, **variant)


def gradients_of_two_scales(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Where the model is applied twice, what does not pass the engine is not divided by the micro-batches' number."""
    trainer = reference.build(workload, topology, **variant)

    def inside(*half: Tensor) -> Tensor:
        loss = trainer.model(*half)
        return loss.detach() + (loss - loss.detach()) * workload.micro_batches

    trainer.model.module = inside
    return trainer


FAULTS = {
    # Clipping may scale gradients in bfloat16, beside which moments in bfloat16 are honest: this work does not clip.
    "moments_in_bfloat16": Fault(
        "zero1", "dp2", {"parity": {"fp32": REPLAYED, "bf16": REPLAYED}}, workload="tiny_adamw"
    ),
    "epsilon_inside_the_root": Fault("zero2", "dp3", {"parity": {"fp32": REPLAYED}}, workload="thorough"),
    "larger_rate": Fault(
        "zero3",
        "dp2",
        {"parity": {"fp32": REPLAYED | TRAINED, "bf16": REPLAYED | {"update slope"}}},
        where="update of model.",
    ),
    "no_weight_decay": Fault("zero2", "dp2", {"parity": {"fp32": REPLAYED, "bf16": REPLAYED}}, workload="tiny_adamw"),
    "a_shard_off_by_one": Fault(
        "zero3",
        "dp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": GRADIENT}},
        where="step 1, gradient of model.layers.1.",
    ),
    "weights_that_are_never_released": Fault(
        "zero3", "dp2", {"memory": {"fp32": {"states"}, "bf16": {"states"}}}, workload="tiny_adamw"
    ),
    "weights_sent_in_float32": Fault("zero3", "dp2", {"traffic": {"bf16": {"bytes"}}}),
    "missing_gradients_from_the_step_before": Fault(
        "zero2",
        "dp2",
        {"parity": {"fp32": LATER_GRADIENT | TRAINED}},
        where="step 2, gradient of model.layers.",
        workload="stochastic_depth",
    ),
    "gradients_in_the_order_in_which_they_come": Fault(
        "zero2",
        "dp2",
        {"parity": {"fp32": GRADIENT | TRAINED}},
        where="step 1, gradient of model.layers.",
        workload="stochastic_depth",
    ),
    "gradients_of_two_scales": Fault(
        "zero2",
        "dp2",
        {"parity": {"fp32": GRADIENT | TRAINED}},
        where="step 1, gradient of model.",
        workload="applied_twice",
    ),
}
