"""torch.utils.checkpoint in DistributedDataParallel: the form that hooks saved tensors, with policies and on the host,
and the reentrant form."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from harness.spec import Topology, Unsupported, Workload
from impls.acceleration.activation_checkpointing.cuts import segments
from impls.acceleration.activation_checkpointing.segmented import segmented
from impls.common.mesh import device
from impls.engines.torch.ddp import DDP

PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]  # products with weights
HOOKED = partial(checkpoint, use_reentrant=False)
REENTRANT = partial(checkpoint, use_reentrant=True)


def offloaded(run: Any, *inputs: Tensor) -> Any:
    """As in PyTorch's offload_wrapper around its checkpoint_wrapper. Only a GPU has a host with a memory of its own."""
    with save_on_cpu(pin_memory=device().type == "cuda"):
        return HOOKED(run, *inputs)


def _ddp(workload: Workload, topology: Topology, said: str) -> DDP:
    if topology.tp > 1:
        raise Unsupported("DistributedDataParallel has no tensor parallelism")
    torch.manual_seed(workload.seed)  # every variant drops the same elements
    trainer = DDP(workload, topology)
    trainer.configuration = f"{trainer.configuration}; {said}"
    return trainer


def build(
    workload: Workload,
    topology: Topology,
    each: int | str = 0,
    nested: bool = False,
    attention_alone: bool = False,
    by_operator: bool = False,
    on_host: bool = False,
) -> DDP:
    whole, said = HOOKED, "checkpoint(use_reentrant=False)"
    if by_operator:
        context = partial(create_selective_checkpoint_contexts, PRODUCTS)
        whole, said = partial(HOOKED, context_fn=context), f"{said}, which keeps aten.mm and aten.addmm"
    elif on_host:
        whole, said = offloaded, f"save_on_cpu() around {said}"
    trainer = _ddp(workload, topology, said)
    cut = segments(workload.model.num_hidden_layers, each)
    segmented(trainer.model.module.model, cut, whole, nested, HOOKED if attention_alone else None)
    return trainer


def build_reentrant(
    workload: Workload,
    topology: Topology,
    each: int | str = 0,
    nested: bool = False,
    attention_alone: bool = False,
) -> DDP:
    trainer = _ddp(workload, topology, "checkpoint(use_reentrant=True)")
    cut = segments(workload.model.num_hidden_layers, each)
    segmented(trainer.model.module.model, cut, REENTRANT, nested, REENTRANT if attention_alone else None)
    return trainer
