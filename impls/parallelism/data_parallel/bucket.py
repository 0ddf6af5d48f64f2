"""A bucket of data parallelism: consecutive parameters whose gradients travel together."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Workload
from impls.common.flat import flatten, flatten_gradients
from impls.common.optimizer import optimizer


class Bucket:
    """``weights`` [Ψ_b] are the parameters, flat; ``gradient`` [Ψ_b] exists from the last arrival to the update."""

    def __init__(self, parameters: list[nn.Parameter], workload: Workload) -> None:
        self.parameters = parameters
        self.weights = flatten(parameters)
        dist.broadcast(self.weights, src=0)  # §3.2.1: all start from rank 0's parameters
        self.master = self.weights.float() if self.weights.dtype.itemsize < 4 else self.weights
        self.optimizer = optimizer([self.master], workload)
        self.gradient: Tensor | None = None
        self.missing = set(parameters)
        self.work: dist.Work | None = None

    def arrive(self, parameter: nn.Parameter) -> bool:
        """Whether this was the last missing gradient."""
        self.missing.discard(parameter)
        if self.missing:
            return False
        self.missing.update(self.parameters)
        if self.gradient is None:  # the first micro-batch; later ones add to the views
            self.gradient = torch.empty_like(self.weights)
            flatten_gradients(self.parameters, self.gradient)
        return True

    def send(self) -> None:
        """Starts the sum over ranks."""
        self.work = dist.all_reduce(self.gradient, async_op=True)

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None

    def update(self) -> None:
        """One step, bucket by bucket, so that only one holds a float32 gradient at a time."""
        assert self.gradient is not None
        self.master.grad = self.gradient.to(self.master.dtype)
        self.gradient = None
        for parameter in self.parameters:
            parameter.grad = None
        self.optimizer.step()
        self.master.grad = None
        if self.master is not self.weights:
            self.weights.copy_(self.master)
