"""Mixed precision with exactly one thing broken."""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Trainer, Workload
from harness.spec.fault import REPLAYED, REPLICAS, UPDATE, Fault
from impls.acceleration.mixed_precision import reference
from impls.acceleration.mixed_precision.grid import SCALED


def scale_not_divided_out(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The optimizer is given the gradient of S times the loss."""
    trainer = reference.build(workload, topology, **variant)
    step = trainer.optimizer.step

    def scaled() -> None:
        for master in trainer.masters.values():
            master.grad.mul_(trainer.loss_scale.scale)
        step()

    trainer.optimizer.step = scaled
    return trainer


def norm_unscaled_with_the_next_scale(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The loss scale has its transition before the norm is taken."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def late() -> None:
        used = trainer.loss_scale.scale
        update()
        trainer.seen["norm"] *= used / trainer.loss_scale.scale

    trainer.update = late
    return trainer


def counted_when_skipped(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """AdamW's counter goes on in a skipped step."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def counting() -> None:
        for state in trainer.optimizer.state.values() if trainer.overflow else ():
            state["step"] += 1
        update()

    trainer.update = counting
    return trainer


def decayed_when_skipped(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A skipped step leaves out the gradient, but not the weight decay."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def decaying() -> None:
        for master in trainer.masters.values() if trainer.overflow else ():
            master.mul_(1 - workload.lr * workload.weight_decay)
        update()

    trainer.update = decaying
    return trainer


def overflow_seen_by_one_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank looks at its own gradients before they are summed over ranks."""
    trainer = reference.build(workload, topology, **variant)
    accumulate, backward = trainer._accumulate, trainer.backward
    mine: list[bool] = []

    def looking(name: str, weight: nn.Parameter) -> None:
        mine.append(not weight.grad.isfinite().all())
        accumulate(name, weight)

    def alone(batch: Batch) -> Tensor:
        mine.clear()
        loss = backward(batch)
        trainer.overflow = any(mine)
        return loss

    trainer._accumulate, trainer.backward = looking, alone
    return trainer


def growth_one_step_early(workload: Workload, topology: Topology, interval: int, **variant: Any) -> Trainer:
    """S grows after n − 1 steps without overflow."""
    return reference.build(workload, topology, interval=interval - 1, **variant)


def hysteresis_ignored(workload: Workload, topology: Topology, hysteresis: int, **variant: Any) -> Trainer:
    """The first overflow halves S."""
    return reference.build(workload, topology, hysteresis=1, **variant)


def masters_cast_back(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """After a step the masters are the weights, which are narrow."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def rounded() -> None:
        update()
        for name, master in trainer.masters.items():
            master.copy_(trainer.weights[name].detach())

    trainer.update = rounded
    return trainer


def accumulated_in_narrow_numbers(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Micro-batches are added in the precision of the passes; only messages are float32."""
    trainer = reference.build(workload, topology, wide=False, **variant)

    def send(g: Tensor) -> None:
        wide = g.float()
        dist.all_reduce(wide)
        g.copy_(wide)

    reference.dist = _sending(send)
    return trainer


def _sending(send: Any) -> Any:
    """torch.distributed with another all_reduce."""

    class Sending:
        all_reduce = staticmethod(send)
        get_rank, get_world_size = staticmethod(dist.get_rank), staticmethod(dist.get_world_size)

    return Sending


SCALE = frozenset({"scale", "skipped", "norm"})  # another scale overflows in other steps
PLAIN_SGD = SCALED.with_(name="scaled_sgd", optimizer="sgd", lr=0.1, weight_decay=0.0, max_grad_norm=0.0)
# The first rank has no label, and so no gradient.
ONE_SIDED = SCALED.with_(name="scaled_one_sided", unlabelled=SCALED.batch_size // 2)
FAULTS = {
    "scale_not_divided_out": Fault("fp16_static", "dp2", {"parity": {"fp16": REPLAYED | UPDATE}}, workload=PLAIN_SGD),
    "norm_unscaled_with_the_next_scale": Fault("fp16_dynamic", "dp2", {"trace": {"fp16": {"norm"}}}, workload=SCALED),
    "counted_when_skipped": Fault("fp16_dynamic", "dp2", {"parity": {"fp16": REPLAYED}}, workload=SCALED),
    "decayed_when_skipped": Fault("fp16_dynamic", "dp2", {"parity": {"fp16": REPLAYED}}, workload=SCALED),
    "overflow_seen_by_one_rank": Fault("fp16_dynamic", "dp2", {"parity": {"fp16": REPLICAS}}, workload=ONE_SIDED),
    "growth_one_step_early": Fault("fp16_dynamic", "dp2", {"trace": {"fp16": SCALE}}, workload=SCALED),
    "hysteresis_ignored": Fault("fp16_hysteresis", "dp2", {"trace": {"fp16": SCALE}}, workload=SCALED),
    "masters_cast_back": Fault("bf16_masters", "dp2", {"parity": {"bf16": REPLAYED}}, workload=SCALED),
    "accumulated_in_narrow_numbers": Fault("fp16_static", "dp2", {"memory": {"fp16": {"states"}}}, workload=SCALED),
}
