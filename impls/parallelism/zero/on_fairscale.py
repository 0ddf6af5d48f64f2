"""FairScale: its OSS, an optimizer with divided states, behind DistributedDataParallel (stage 1) or its own
ShardedDataParallel (stage 2), which reduces each gradient to the rank that steps it; its FullyShardedDataParallel
(stage 3)."""

import contextlib
import os
from collections.abc import Callable, Mapping
from unittest import mock

import torch
import torch.distributed as dist

os.environ["ENABLE_NCCL_BASE_COLLECTIVES"] = "0"  # they reduce-scatter a matrix into a vector: gloo rejects it
from fairscale.nn.data_parallel import FullyShardedDataParallel, ShardedDataParallel
from fairscale.optim.oss import OSS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.common.weights import TORCH_DTYPES, build_model
from impls.engines import cuda_on_cpu

WRAPPERS = ("", "_fsdp_wrapped_module", "_fpw_module")  # parts of a name that FairScale adds


class FairScale:
    """``to_none``: the optimizer's ``zero_grad()`` drops gradients after a step, the default since PyTorch 2.0;
    ShardedDataParallel's own keeps the tensors, which are views of its buckets."""

    def __init__(self, workload: Workload, topology: Topology, stage: int, to_none: bool) -> None:
        if workload.element_size < 4:
            raise Unsupported("FairScale's OSS keeps no float32 master weights for a bf16 model")
        self.workload, self.topology, self.to_none = workload, topology, to_none
        module = build_model(workload)
        options = {"lr": workload.lr, "weight_decay": workload.weight_decay}
        if workload.optimizer == "adamw":
            options |= {"betas": workload.betas, "eps": workload.eps}
        self.optimizer = OSS(
            module.parameters(), torch.optim.AdamW if workload.optimizer == "adamw" else torch.optim.SGD, **options
        )
        self.model: nn.Module = (
            ShardedDataParallel(module, self.optimizer)
            if stage == 2
            else DistributedDataParallel(
                module, gradient_as_bucket_view=True, find_unused_parameters=workload.model.stochastic_depth
            )
        )
        self.names = dict(module.named_parameters())

    def backward(self, batch: Batch) -> Tensor:
        def around(last: bool) -> contextlib.AbstractContextManager[object]:
            return contextlib.nullcontext() if last else self.model.no_sync()

        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.topology.dp, around=around)

    def update(self) -> None:
        if self.workload.max_grad_norm:
            self.optimizer.clip_grad_norm(self.workload.max_grad_norm)
        self.optimizer.step()
        (self.optimizer if self.to_none else self.model).zero_grad(set_to_none=self.to_none)

    def gradients(self) -> Mapping[str, Tensor]:
        found = {}
        for name, parameter in self.names.items():
            found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            dist.broadcast(found[name], self.optimizer._param_to_rank[parameter])
        return found

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: parameter.detach().cpu() for name, parameter in self.names.items()}


class FullySharded:
    """Its FSDP: one unit per layer, and one for the rest; in bf16 it gathers rounded copies of float32 shards."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        if workload.dtype == "fp64":
            raise Unsupported("FairScale's FSDP holds float32 weights only")
        narrow = workload.element_size < 4
        if narrow and topology.dp == 1:
            raise Unsupported("on one rank FairScale's FSDP leaves bfloat16 gradients on float32 weights")
        if workload.model.stochastic_depth:
            raise Unsupported("FairScale's FSDP requires every unit: a skipped one has no attribute _full_param_padded")
        if workload.applied_twice:
            raise Unsupported("the model inside FairScale's FSDP has no weights that it could be applied with")
        cuda_on_cpu.redirect()
        self.workload, self.topology = workload, topology
        options = {
            "mixed_precision": narrow,
            "compute_dtype": TORCH_DTYPES[workload.dtype],
            "compute_device": device(),
            "disable_reshard_on_root": False,
            "bucket_cap_mb": 0,  # its buckets are for smaller tensors, and would outlive the step
        }
        module = build_model(workload, torch.float32)
        layers = module.model.layers
        for index, layer in enumerate(layers):
            layers[index] = FullyShardedDataParallel(layer, **options)
        self.model = FullyShardedDataParallel(module, **options)
        # It creates streams only with CUDA, but uses them everywhere.
        with mock.patch("torch.cuda.is_available", return_value=True):
            self.model._lazy_init()
        wrapped = [(n, m) for n, m in self.model.named_modules() if isinstance(m, FullyShardedDataParallel)]
        self.units = {name: unit.params[0] for name, unit in wrapped}
        self.optimizer = optimizer(self.model.parameters(), workload)

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.topology.dp)

    def update(self) -> None:
        if self.workload.max_grad_norm:
            self.model.clip_grad_norm_(self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _whole(self, read: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
        found = {}
        for unit, flat in self.units.items():
            names, shapes, sizes = flat.metadata()
            shards = [torch.empty_like(read(flat)) for _ in range(self.topology.dp)]
            dist.all_gather(shards, read(flat))
            parts = torch.cat(shards)[: sum(sizes)].split(sizes)
            for name, part, shape in zip(names, parts, shapes, strict=True):
                path = f"{unit}.{name}".split(".")
                found[".".join(piece for piece in path if piece not in WRAPPERS)] = part.view(shape)
        return found

    def gradients(self) -> Mapping[str, Tensor]:
        return self._whole(lambda shard: shard.grad)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._whole(lambda shard: shard.detach())

    def padding(self) -> int:
        """Each unit is padded to a multiple of the ranks."""
        return sum(flat.numel() * self.topology.dp - sum(flat.metadata()[2]) for flat in self.units.values())


def build(workload: Workload, topology: Topology, stage: int) -> FairScale | FullySharded:
    return FullySharded(workload, topology) if stage == 3 else FairScale(workload, topology, stage, to_none=False)


def build_default(workload: Workload, topology: Topology, stage: int) -> FairScale:
    return FairScale(workload, topology, stage, to_none=True)
