"""This rank's place in the topology, and its share of the batch."""

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from harness.spec import Batch, Topology, Unsupported, Workload


def device() -> torch.device:
    """The accelerator that the launcher gave this rank, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def mesh(topology: Topology) -> DeviceMesh:
    """A mesh (pp, dp, cp, tp), tensor-parallel ranks adjacent: they talk most (Narayanan et al. 2021, §3.1)."""
    sizes = {"pp": topology.pp, "dp": topology.dp, "cp": topology.cp, "tp": topology.tp}
    return init_device_mesh(device().type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def groups(topology: Topology, group: int) -> int:
    """How many groups of ``group`` neighbours the data-parallel ranks make; Unsupported if some are left over."""
    if topology.dp % group:
        raise Unsupported(f"dp {topology.dp} is no multiple of its groups of {group} ranks")
    return topology.dp // group


def lines(places: DeviceMesh, *axes: str) -> list[list[int]]:
    """The ranks of each line of the mesh along some of its axes, the last of these fastest."""
    names = places.mesh_dim_names or ()
    dims = [names.index(axis) for axis in axes]
    return places.mesh.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims)).flatten(0, -2).tolist()


def share(batch: Batch, workload: Workload, dp_rank: int, dp: int) -> Iterator[tuple[Batch, float]]:
    """This data-parallel rank's micro-batches of the global batch, on its device, each with its :func:`token_share`."""
    return ((placed(micro), token_share(micro, batch)) for micro in cut(batch, workload, dp_rank, dp))


def cut(batch: Batch, workload: Workload, dp_rank: int, dp: int) -> Iterator[Batch]:
    """This data-parallel rank's micro-batches of the global batch, where that is."""
    rows = batch.inputs.shape[0] // dp
    mine = slice(dp_rank * rows, (dp_rank + 1) * rows)
    pieces = (t[mine].chunk(workload.micro_batches) for t in batch)
    return (Batch(*piece) for piece in zip(*pieces, strict=True))


def placed(batch: Batch) -> Batch:
    """On this rank's device. The host does not wait for a copy that leaves pinned memory."""
    there = device()
    return batch if there.type == "cpu" else Batch(*(t.pin_memory().to(there, non_blocking=True) for t in batch))


def own(tensor: Tensor) -> Tensor:
    """A copy on the CPU. Of a view of a flat buffer, pickle would send the buffer."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def gather(mine: Mapping[str, Tensor], group: dist.ProcessGroup) -> Mapping[str, Tensor]:
    """What the ranks of a group hold between them, whole on the group's first rank; elsewhere nothing."""
    parts: list[dict[str, Tensor]] | None = [{}] * group.size() if group.rank() == 0 else None
    dist.gather_object({name: own(tensor) for name, tensor in mine.items()}, parts, group=group, group_dst=0)
    return {name: tensor for part in parts or [] for name, tensor in part.items()}


def token_share(micro: Batch, batch: Batch) -> float:
    """The part of the global batch's labels that this micro-batch has: what its mean loss weighs. Both on the host,
    which would have to wait for what a device counts."""
    counted, every = (int((labels >= 0).sum()) for labels in (micro.labels, batch.labels))
    return counted / every
