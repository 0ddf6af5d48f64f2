"""ZeRO with exactly one thing broken."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, REPLAYED, TRAINED, Fault
from impls.parallelism.zero import reference
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
}
