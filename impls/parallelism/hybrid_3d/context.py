"""Context parallelism of a whole decoder: each rank of a ring has its part of every sequence, laid out zig-zag.

All that acts on a token alone needs nothing else; RoPE is told the positions, and attention goes round the ring. The
ranks are then like data-parallel ones: each has tokens of its own, and gradients are the mean over dp × cp. Where 2·cp
does not divide the length, what is padded comes last, where no other query sees it, and has no label.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import pad

from harness.spec import Batch, Workload
from impls.common.data import IGNORED
from impls.common.decoder import Attention
from impls.common.mesh import device
from impls.parallelism.context_parallel.layouts import blocks, padded, runs
from impls.parallelism.context_parallel.ring import Ring, RingAttention

LAYOUT = "zigzag"


def part_length(workload: Workload, cp: int) -> int:
    """Positions of each sequence on a rank."""
    return padded(workload.sequence_length, LAYOUT, cp) // cp if cp > 1 else workload.sequence_length


class Context:
    """``positions`` [s/cp] of this rank."""

    def __init__(self, workload: Workload, cp: int, rank: int) -> None:
        self.whole = part_length(workload, cp) * cp
        every = torch.arange(self.whole, device="cpu")  # also where stages are being built without storage
        self.positions = torch.cat([every[run] for run in runs(LAYOUT, rank, cp, self.whole)])

    def part(self, micro: Batch) -> Batch:
        """This rank's positions [b, s/cp] of a micro-batch [b, s]; both on the host."""
        more = (0, self.whole - micro.inputs.shape[1])
        inputs, labels = pad(micro.inputs, more), pad(micro.labels, more, value=IGNORED)
        return Batch(*(tokens[:, self.positions] for tokens in (inputs, labels)))

    def enter(self, module: nn.Module, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Tells a stage its positions, and its layers the attention over all ranks'."""
        module.positions = self.positions.to(device())
        for layer in module.modules():
            if isinstance(layer, Attention):
                layer.attend = attend


def ring(workload: Workload, places: DeviceMesh) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The reference's attention over the ranks along cp."""
    group, rank = places.get_group("cp"), places.get_local_rank("cp")
    lengths = (part_length(workload, group.size()),)
    plan = [blocks(LAYOUT, rank, source, lengths) for source in range(group.size())]
    return partial(RingAttention.apply, Ring(group, rank, group.size(), plan))
