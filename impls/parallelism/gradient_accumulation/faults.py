"""Gradient accumulation with exactly one thing broken."""

import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LATER_GRADIENT, REPLAYED, TRAINED, Fault
from harness.spec.named import NAMED
from impls.common.flat import views
from impls.common.mesh import share
from impls.parallelism.gradient_accumulation import reference


def tokens_of_its_own_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank normalises by its own tokens, as if all ranks had as many."""

    def weights(labels: list[Tensor]) -> Tensor:
        counts = torch.stack([(part >= 0).sum() for part in labels])
        return counts.double() / counts.sum() / dist.get_world_size()

    reference.token_weights = weights
    return reference.build(workload, topology, **variant)


def graphs_of_all_micro_batches(workload: Workload, topology: Topology, by_tokens: bool = True) -> Trainer:
    """All forward passes come before the first backward pass, and so all activations are kept at once."""

    class Whole(reference.Accumulation):
        def backward(self, batch: Batch) -> Tensor:
            micro_batches = [micro for micro, _ in share(batch, self.workload, self.rank, self.ranks)]
            weights = self.weights([micro.labels for micro in micro_batches])
            losses = [self.model(*micro) * weight for micro, weight in zip(micro_batches, weights, strict=True)]
            for index, loss in enumerate(losses):
                with self._sending(index == len(losses) - 1):
                    loss.backward()
            for bucket in self.buckets:
                bucket.wait()
            return torch.stack(losses).detach().sum() * self.ranks

    return Whole(workload, by_tokens)


def a_counter_that_slips(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """From the fourth step on, AdamW's step count is one too small."""
    trainer = reference.build(workload, topology, **variant)
    update, count = trainer.update, itertools.count(1)

    def slipping() -> None:
        if next(count) == 4:
            for bucket in trainer.buckets:
                for state in bucket.optimizer.state.values():
                    state["step"] -= 1
        update()

    trainer.update = slipping
    return trainer


def gains_that_are_not_decayed(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Norms are left out of the weight decay, as in many recipes, but not in this one."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update
    gains = [
        view
        for bucket in trainer.buckets
        for parameter, view in zip(bucket.parameters, views(bucket.master, bucket.parameters), strict=True)
        if parameter.dim() == 1
    ]

    def undone() -> None:
        before = [gain.clone() for gain in gains]
        update()
        for gain, old in zip(gains, before, strict=True):
            gain.add_(old, alpha=workload.lr * workload.weight_decay)

    trainer.update = undone
    return trainer


def a_race_in_one_step(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """In the seventh step the first bucket is not summed over ranks."""
    trainer = reference.build(workload, topology, **variant)
    backward, count = trainer.backward, itertools.count(1)
    bucket = trainer.buckets[0]
    send = bucket.send

    def racing(batch: Batch) -> Tensor:
        bucket.send = (lambda: None) if next(count) == 7 else send
        return backward(batch)

    trainer.backward = racing
    return trainer


def a_third_in_bfloat16(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The weight of a micro-batch is rounded to bfloat16, which is exact only where all counts are powers of two."""
    weights = reference.token_weights
    reference.token_weights = lambda labels: weights(labels).bfloat16().double()
    return reference.build(workload, topology, **variant)


def the_last_micro_batch_left_out(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Of an odd number of micro-batches, the last has no weight."""

    def weights(labels: list[Tensor]) -> Tensor:
        return exact(labels) * torch.tensor([1.0] * (len(labels) - len(labels) % 2) + [0.0] * (len(labels) % 2))

    exact = reference.token_weights
    reference.token_weights = weights
    return reference.build(workload, topology, **variant)


def labels_counted_as_at_least_one(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A micro-batch without a label is weighed as if it had one."""

    def weights(labels: list[Tensor]) -> Tensor:
        counts = torch.stack([(part >= 0).sum().clamp(min=1) for part in labels])
        total = counts.sum()
        dist.all_reduce(total)
        return counts.double() / total

    reference.token_weights = weights
    return reference.build(workload, topology, **variant)


def divided_twice(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Weights that add up to one are divided by the number of micro-batches once more."""
    weights = reference.token_weights
    reference.token_weights = lambda labels: weights(labels) / len(labels)
    return reference.build(workload, topology, **variant)


FAULTS = {
    "divided_twice": Fault(
        "accumulate_tokens",
        "dp2",
        {"parity": {"fp32": GRADIENT, "bf16": GRADIENT}},
        where="every gradient × 0.3333",
        workload="thorough",
    ),
    "a_counter_that_slips": Fault(
        "accumulate_tokens", "dp2", {"parity": {"fp32": REPLAYED, "bf16": REPLAYED}}, workload="thorough"
    ),
    "gains_that_are_not_decayed": Fault(
        "accumulate_tokens", "dp2", {"parity": {"fp32": REPLAYED}}, workload="thorough"
    ),
    "a_race_in_one_step": Fault(
        "accumulate_tokens",
        "dp2",
        {"parity": {"fp32": LATER_GRADIENT, "bf16": {"later gradients"}}},
        where="step 7, gradient of ",
        workload="thorough",
    ),
    "a_third_in_bfloat16": Fault(
        "accumulate_tokens", "dp3", {"parity": {"fp32": GRADIENT}}, where="step 1, gradient of ", workload="thorough"
    ),
    "the_last_micro_batch_left_out": Fault(
        "accumulate_tokens",
        "dp2",
        {"parity": {"fp32": GRADIENT, "bf16": GRADIENT}},
        where="step 1, gradient of ",
        workload="thorough",
    ),
    "labels_counted_as_at_least_one": Fault(
        "accumulate_tokens",
        "dp2",
        {"parity": {"fp32": GRADIENT}},
        where="step 1, gradient of ",
        workload="unlabelled",
    ),
    "tokens_of_its_own_rank": Fault(
        "accumulate_tokens",
        "dp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": {"update"}}},
        where="step 1, gradient of ",
        # Where there are few sequences, ranks have more unequal numbers of tokens.
        workload=NAMED["unequal"].with_(batch_size=4, micro_batches=2),
    ),
    "graphs_of_all_micro_batches": Fault(
        "accumulate_tokens", "dp2", {"memory": {"fp32": {"activations"}}}, workload="accumulated"
    ),
}
