"""References that do the same in another honest way: other orders of sums, more threads, another answer to NaN."""

from typing import Any

import torch
from torch import Tensor

from harness.launch.reordered import Reordered
from harness.spec import Batch, Topology, Trainer, Workload
from impls.parallelism.data_parallel import reference as data_parallel


def two_threads(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    torch.set_num_threads(2)
    return data_parallel.build(workload, topology, **variant)


def other_sums(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Products and sums add in an order that no member of the ensemble has."""
    trainer = data_parallel.build(workload, topology, **variant)
    backward = trainer.backward

    def reordered(batch: Batch) -> Tensor:
        with Reordered(seed=100 + workload.seed):
            return backward(batch)

    trainer.backward = reordered
    return trainer


def skipped_on_all_ranks(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A step whose averaged gradients are not finite is left out; every rank sees the same ones."""
    trainer = data_parallel.build(workload, topology, **variant)
    update = trainer.update

    def skip() -> None:
        if all(gradient.isfinite().all() for gradient in trainer.gradients().values()):
            update()
            return
        for bucket in trainer.buckets:
            bucket.gradient = None
            for parameter in bucket.parameters:
                parameter.grad = None

    trainer.update = skip
    return trainer


def stopped_on_all_ranks(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """It raises an error instead."""
    trainer = data_parallel.build(workload, topology, **variant)
    update = trainer.update

    def stop() -> None:
        if not all(gradient.isfinite().all() for gradient in trainer.gradients().values()):
            raise RuntimeError("the gradient is not finite")
        update()

    trainer.update = stop
    return trainer
