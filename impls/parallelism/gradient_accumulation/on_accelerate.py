"""Accelerate's ``accumulate()``: its ``backward`` divides each loss by k, so losses are weighted by tokens
beforehand."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import device, share
from impls.common.optimizer import MasterWeights, clip
from impls.common.weights import build_model


class Accumulation:
    def __init__(self, workload: Workload, topology: Topology, by_tokens: bool) -> None:
        self.workload, self.topology, self.by_tokens = workload, topology, by_tokens
        self.rank = dist.get_rank()
        self.accelerator = Accelerator(
            gradient_accumulation_steps=workload.micro_batches,
            cpu=device().type == "cpu",
            # Without the view, DDP keeps every gradient twice.
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        model = build_model(workload)
        self.names = [name for name, _ in model.named_parameters()]
        # Its own wrapper of an optimizer does not support float32 master weights, so ours stays outside it.
        self.optimizer = MasterWeights(model.parameters(), workload)
        self.model = self.accelerator.prepare_model(model)
        if topology.dp > 1 and not isinstance(self.model, DistributedDataParallel):
            raise RuntimeError(f"Accelerate made a {type(self.model).__name__}, not a DistributedDataParallel")
        self.inner = model

    def backward(self, batch: Batch) -> Tensor:
        k, total = self.workload.micro_batches, torch.zeros((), device=device())
        for micro, part in share(batch, self.workload, self.rank, self.topology.dp):
            with self.accelerator.accumulate(self.model):
                loss = self.model(*micro)
                if self.by_tokens:
                    loss = loss * part * self.topology.dp * k
                self.accelerator.backward(loss)
            total += loss.detach() / k
        return total

    def update(self) -> None:
        clip([p.grad for p in self.inner.parameters() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad.cpu() for name, p in self.inner.named_parameters() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {n: m.detach().cpu() for n, m in zip(self.names, self.optimizer.masters, strict=True)}


def build(workload: Workload, topology: Topology, by_tokens: bool = True) -> Accumulation:
    return Accumulation(workload, topology, by_tokens)
