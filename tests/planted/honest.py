"""References that compute the same in another honest way: other orders of sums, more threads."""

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
