"""Adapters of a four-bit base with exactly one thing broken."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LATER_GRADIENT, LOSS, REPLICAS, Fault
from impls.finetuning.qlora import reference, sharded, storage
from impls.finetuning.qlora.grid import BLOCKS


def scale_of_the_neighbour(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each block of weights is scaled back by the scale of the block before it."""
    honest = storage.dequantise

    def dequantise(codes: Tensor, largest: Tensor, values: Tensor, block: int) -> Tensor:
        return honest(codes, largest.roll(1) if block == storage.BLOCK else largest, values, block)

    storage.dequantise = dequantise
    return reference.build(workload, topology, **variant)


def offset_forgotten(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The scales lack their mean."""
    honest = storage.Format.unpack

    def unpack(self: storage.Format, packed: storage.Packed, *how: Any) -> Tensor:
        return honest(self, packed._replace(offset=torch.zeros_like(packed.offset)), *how)

    storage.Format.unpack = unpack
    return reference.build(workload, topology, **variant)


def slope_of_the_unrounded(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The backward pass multiplies by the weights before they were quantised."""
    pack, unrounded = storage.Format.pack, {}

    def remember(self: storage.Format, whole: Tensor) -> storage.Packed:
        packed = pack(self, whole)
        unrounded[packed.codes.data_ptr()] = whole.detach().clone()
        return packed

    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope @ unrounded[ctx.base.packed.codes.data_ptr()], None

    storage.Format.pack, reference.FrozenProduct.backward = remember, staticmethod(backward)
    return reference.build(workload, topology, **variant)


def weights_kept(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A matrix is dequantised once, and stays."""
    honest, kept = reference.Whole.dequantised, {}

    def dequantised(base: reference.Whole, dtype: torch.dtype) -> Tensor:
        if base not in kept:
            kept[base] = honest(base, dtype)
        return kept[base]

    reference.Whole.dequantised = dequantised
    return reference.build(workload, topology, **variant)


def weights_saved(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Autograd keeps the dequantised weights for the backward pass."""
    reference.FrozenProduct.apply = lambda x, base: F.linear(x, base.dequantised(x.dtype))
    return reference.build(workload, topology, **variant)


def parts_in_another_order(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The parts of a gathered layer are put together from the last rank to the first."""
    honest = dist.all_gather_into_tensor

    def gather(whole: Tensor, mine: Tensor, group: dist.ProcessGroup) -> None:
        honest(whole, mine, group=group)
        whole.copy_(whole.view(group.size(), -1).flip(0).flatten())

    sharded.dist.all_gather_into_tensor = gather
    return reference.build(workload, topology, **variant)


def adapters_unscaled(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """s is 1."""
    reference.scale = lambda rank, alpha: 1.0
    return reference.build(workload, topology, **variant)


def adapters_of_one_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank steps by its own share of the batch."""
    reference.sum_flat = lambda tensors, group: None
    return reference.build(workload, topology, **variant)


def requantised(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A step rounds one matrix again, after the adapters moved it."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def rounding() -> None:
        update()
        name, packed = next(iter(trainer.packed.items()))
        layer = trainer.model.get_submodule(name)
        whole = layer.base.dequantised(torch.float32) + layer.s * (layer.B @ layer.A).detach()
        for held, new in zip(packed, trainer.format.pack(whole), strict=True):
            held.copy_(new)

    trainer.update = rounding
    return trainer


BOTH = ("fp32", "bf16")
FAULTS = {
    "scale_of_the_neighbour": Fault("qlora_single", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT)}),
    "offset_forgotten": Fault("qlora", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT | LOSS)}),
    "slope_of_the_unrounded": Fault("qlora", "dp1", {"parity": dict.fromkeys(BOTH, frozenset({"gradient"}))}),
    "weights_kept": Fault("qlora", "dp1", {"memory": dict.fromkeys(BOTH, frozenset({"states"}))}),
    "weights_saved": Fault("qlora", "dp1", {"memory": dict.fromkeys(BOTH, frozenset({"activations"}))}),
    "parts_in_another_order": Fault("qlora_sharded", "dp2", {"parity": dict.fromkeys(BOTH, GRADIENT)}, workload=BLOCKS),
    "adapters_unscaled": Fault("qlora", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT)}),
    "adapters_of_one_rank": Fault(
        "qlora", "dp2", {"parity": dict.fromkeys(BOTH, GRADIENT | REPLICAS)}, workload=BLOCKS
    ),
    "requantised": Fault("qlora", "dp1", {"parity": dict.fromkeys(BOTH, LATER_GRADIENT | {"frozen"})}),
}
