"""The part of each weight that a tensor-parallel rank holds (Shoeybi et al. 2019, §3), and the inverse.

rows of the matrix (dim 0, "column-parallel": Y = X Wᵀ is cut by columns)   q, k, v, gate, up, embedding, head
columns (dim 1, "row-parallel")                                             o, down
everything (replicated)                                                     norms

A bias is cut as the rows of its matrix: those of o and down, which are added to a sum over ranks, are whole.
"""

from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch import Tensor, cat

from impls.common.mesh import own

DIM = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "gate_proj": 0, "up_proj": 0, "embed_tokens": 0, "lm_head": 0}
DIM |= {"o_proj": 1, "down_proj": 1}


def dim(name: str) -> int | None:
    """The dimension along which the parameter of this canonical name is cut, or None: every rank holds it whole."""
    module, kind = name.split(".")[-2:]
    cut = DIM.get(module)
    return None if kind == "bias" and cut else cut


def bounds(size: int, rank: int, t: int) -> tuple[int, int]:
    """[start, end) of rank's part of ``size`` elements; if t does not divide size, the first ranks have one more."""
    part, more = divmod(size, t)
    start = rank * part + min(rank, more)
    return start, start + part + (rank < more)


def shard(name: str, full: Tensor, rank: int, t: int) -> Tensor:
    """This rank's part of a full tensor, as a view."""
    cut = dim(name)
    if cut is None:
        return full
    start, end = bounds(full.shape[cut], rank, t)
    return full.narrow(cut, start, end - start)


def join(name: str, parts: Sequence[Tensor]) -> Tensor:
    """The full tensor from the parts of all ranks, in their order."""
    cut = dim(name)
    return parts[0] if cut is None else cat(list(parts), cut)


def collect(mine: Mapping[str, Tensor], group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The full tensors, on the CPU, on the group's first rank; nothing on the others."""
    local = {name: own(tensor) for name, tensor in mine.items()}
    if group.size() == 1:
        return local
    all_ranks: list[dict[str, Tensor]] | None = [{}] * group.size() if group.rank() == 0 else None
    dist.gather_object(local, all_ranks, group=group, group_dst=0)
    if all_ranks is None:
        return {}
    return {name: join(name, [part[name] for part in all_ranks]) for name in local}
