"""This rank's part of whole tensors, and the inverse: code that every engine here shares."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from harness.spec import Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.parallelism.context_parallel.layouts import documents, padded, runs


def folded(x: Tensor) -> Tensor:
    """[b, h, s, d] → [1, h, b·s, d]: the sequences of a batch one after another."""
    return x.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def unfolded(x: Tensor, batch: int) -> Tensor:
    """[1, h, b·s, d] → [b, h, s, d]."""
    return x.squeeze(0).unflatten(1, (batch, -1)).transpose(0, 1)


def grid(topology: Topology, group: int) -> tuple[int, int]:
    """The number of ranks in a ring, and of ranks that exchange heads: ``group`` neighbours, or all ranks if that is
    0."""
    cp = topology.cp
    if topology.world_size != cp:
        raise Unsupported(f"attention alone is distributed over cp ranks only, not over {topology}")
    if cp % (group or cp):
        raise Unsupported(f"groups of {group} ranks do not divide cp {cp}")
    return cp // (group or cp), group or cp


class Spread:
    """Sequences on ``ring`` × ``group`` ranks: the layout divides each document among the ring's ranks, and each part
    is divided again, in order, among the ranks that exchange heads. Rank = ring rank · group + group rank."""

    def __init__(self, workload: Workload, topology: Topology, layout: str, group: int, packed: bool) -> None:
        self.workload, self.layout, self.packed = workload, layout, packed
        self.ring, self.group = grid(topology, group)
        self.documents = documents(workload, packed)
        self.padded = [padded(length, layout, self.ring, self.group) for length in self.documents]
        self.lengths = [length // self.ring for length in self.padded]  # on each rank of a ring

    def mesh(self) -> DeviceMesh:
        """Dimensions "ring" and "group"; ranks that exchange heads are neighbours, since they send most."""
        return init_device_mesh(device().type, (self.ring, self.group), mesh_dim_names=("ring", "group"))

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """[b, h, s, d] → [b, h, n, d]; packed, → [1, h, n, d]."""
        ring_rank, group_rank = divmod(rank, self.group)
        tokens = folded(whole) if self.packed else whole
        pieces = []
        for document, size in zip(tokens.split(self.documents, dim=2), self.padded, strict=True):
            document = torch.nn.functional.pad(document, (0, 0, 0, size - document.shape[2]))
            pieces += [document[:, :, run] for run in runs(self.layout, ring_rank, self.ring, size)]
        return torch.cat(pieces, dim=2).chunk(self.group, dim=2)[group_rank]

    def whole(self, parts: list[Tensor]) -> Tensor:
        """The inverse of :meth:`part`, from all ranks' parts; padding is cut off."""
        rings = [torch.cat(parts[i : i + self.group], dim=2) for i in range(0, len(parts), self.group)]
        found = []
        for index, (length, size) in enumerate(zip(self.documents, self.padded, strict=True)):
            document = parts[0].new_empty(*parts[0].shape[:2], size, parts[0].shape[3])
            for ring_rank, tokens in enumerate(rings):
                mine, start = tokens.split(self.lengths, dim=2)[index], 0
                for run in runs(self.layout, ring_rank, self.ring, size):
                    place = document[:, :, run]
                    place.copy_(mine[:, :, start : start + place.shape[2]])
                    start += place.shape[2]
            found.append(document[:, :, :length])
        tokens = torch.cat(found, dim=2)
        return unfolded(tokens, self.workload.batch_size) if self.packed else tokens

    def split(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's parts; for cu_seqlens, the starts of the documents in them."""
        starts = torch.tensor([0, *self.lengths]).cumsum(0)
        return {n: starts if n == "cu_seqlens" else self.part(x, dist.get_rank()) for n, x in tensors.items()}

    def gather(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, part in parts.items():
            every = [
                torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
            ]
            dist.all_gather(every, part.contiguous())
            found[name] = self.whole(every)
        return found


class SequenceFirst(Spread):
    """For engines whose own tensors are [b, n, h, d]: the parts have this memory layout, so they are not copied."""

    def part(self, whole: Tensor, rank: int) -> Tensor:
        return super().part(whole, rank).transpose(1, 2).contiguous().transpose(1, 2)
