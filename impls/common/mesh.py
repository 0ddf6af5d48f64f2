"""This rank's place in the topology, and its share of the batch."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from harness.spec import Batch, Topology, Unsupported, Workload

Tensors = TypeVar("Tensors", bound=tuple[Tensor, ...])


def device() -> torch.device:
    """The accelerator that the launcher gave this rank, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def mesh(topology: Topology) -> DeviceMesh:
    """A mesh (pp, dp, cp, tp) with adjacent tensor-parallel ranks, since they communicate most (Narayanan et al. 2021,
    §3.1)."""
    sizes = {"pp": topology.pp, "dp": topology.dp, "cp": topology.cp, "tp": topology.tp}
    return init_device_mesh(device().type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def groups(topology: Topology, group: int) -> int:
    """The number of groups of ``group`` neighbours among the data-parallel ranks; Unsupported if some ranks are left
    over."""
    if topology.dp % group:
        raise Unsupported(f"dp {topology.dp} is not a multiple of its groups of {group} ranks")
    return topology.dp // group


def lines(places: DeviceMesh, *axes: str) -> list[list[int]]:
    """The ranks of each line of the mesh along some of its axes; the last axis varies fastest."""
    names = places.mesh_dim_names or ()
    dims = [names.index(axis) for axis in axes]
    return places.mesh.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims)).flatten(0, -2).tolist()


def share(batch: Batch, workload: Workload, dp_rank: int, dp: int) -> Iterator[tuple[Batch, float]]:
    """This data-parallel rank's micro-batches of the global batch, on its device, each with its :func:`token_share`."""
    return ((placed(micro), token_share(micro, batch)) for micro in cut(batch, workload, dp_rank, dp))


def cut(batch: Batch, workload: Workload, dp_rank: int, dp: int) -> Iterator[Batch]:
    """This data-parallel rank's micro-batches of the global batch, on the batch's device."""
    rows = batch.inputs.shape[0] // dp
    mine = slice(dp_rank * rows, (dp_rank + 1) * rows)
    pieces = (t[mine].chunk(workload.micro_batches) for t in batch)
    return (Batch(*piece) for piece in zip(*pieces, strict=True))


def moved(tensor: Tensor) -> Tensor:
    """The same on this rank's device. The host does not wait for a copy from pinned memory."""
    there = device()
    return tensor if there.type == "cpu" else tensor.pin_memory().to(there, non_blocking=True)


def placed(batch: Tensors) -> Tensors:
    """A named tuple with all of its tensors :func:`moved`."""
    return type(batch)(*(moved(tensor) for tensor in batch))


def own(tensor: Tensor) -> Tensor:
    """A copy on the CPU. For a view of a flat buffer, pickle would otherwise send the whole buffer."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def gather(mine: Mapping[str, Tensor], group: dist.ProcessGroup) -> Mapping[str, Tensor]:
    """The parts of all ranks in a group, whole on the group's first rank; nothing on the others."""
    parts: list[dict[str, Tensor]] | None = [{}] * group.size() if group.rank() == 0 else None
    dist.gather_object({name: own(tensor) for name, tensor in mine.items()}, parts, group=group, group_dst=0)
    return {name: tensor for part in parts or [] for name, tensor in part.items()}


def token_share(micro: Batch, batch: Batch) -> float:
    """This micro-batch's share of the global batch's labels, which weighs its mean loss. Both counts are taken on the
    host, which would have to wait for a count on a device."""
    counted, every = (int((labels >= 0).sum()) for labels in (micro.labels, batch.labels))
    return counted / every
