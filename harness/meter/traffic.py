"""The collectives of a step: calls and bytes by operation and group, counted alike for every engine.

*Bytes* are the amount that one rank sends in a ring, the algorithm with the least traffic: 2(N−1)/N of the buffer for
an all-reduce, (N−1)/N for a gather or scatter (whichever rank is its root), and everything but the rank's own part for
an all-to-all. A backend may really send more: gloo's reduce-scatter is an all-reduce inside.
"""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONTROL = 16  # bytes: buffers up to this size are losses, norms or flags, not data

# operator → (name, share of the whole buffer that one of n ranks sends in a ring)
_RING = {
    "allreduce": ("all_reduce", lambda n: 2 * (n - 1) / n),
    "all_reduce": ("all_reduce", lambda n: 2 * (n - 1) / n),
    "reduce_scatter": ("reduce_scatter", lambda n: (n - 1) / n),
    "allgather": ("all_gather", lambda n: (n - 1) / n),
    "all_gather": ("all_gather", lambda n: (n - 1) / n),
    "broadcast": ("broadcast", lambda n: (n - 1) / n),
    "reduce": ("reduce", lambda n: (n - 1) / n),
    "send": ("send", lambda n: 1.0),
}
_ROOTED = ("gather", "scatter")  # only the root gives the whole buffer
_EXCHANGES = ("alltoall", "all_to_all")
_SILENT = ("wait_tensor", "wrap_tensor_autograd", "barrier", "monitored_barrier", "recv", "recv_any_source")


def _operation(name: str) -> str:
    """``"_allgather_base_"`` → ``"allgather"``."""
    plain = name.strip("_")
    for ending in ("_coalesced", "_into_tensor", "_tensor", "_base", "_single", "_out"):
        while ending in plain:
            plain = plain.replace(ending, "")
    return plain.strip("_")


@functools.cache
def _collective(operator: Any) -> str:
    """The name of a collective that sends data, or an empty string."""
    namespace, _, name = operator._schema.name.partition("::")
    return name if namespace in ("c10d", "_c10d_functional") and name.strip("_") not in _SILENT else ""


class Traffic(TorchDispatchMode):
    """Counts while it is active. ``by_op``: name → {"calls", "bytes", "control"} of this rank. ``by_group``: bytes of
    data by the ranks that take part; a message has its two ends."""

    def __init__(self) -> None:
        super().__init__()
        self.by_op: dict[str, dict[str, float]] = {}
        self.by_group: dict[tuple[int, ...], float] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the check costs microseconds per operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its own dispatch must run first: it contains the collectives
        out = func(*args, **(kwargs or {}))
        if name := _collective(func):
            self._count(name, [*args, *(kwargs or {}).values()], out)
        return out

    def _count(self, raw: str, arguments: list[Any], out: Any) -> None:
        name = _operation(raw)
        if name not in _RING and name not in _ROOTED + _EXCHANGES:
            raise ValueError(f"the traffic meter does not know the collective {raw!r}: add it to _RING")
        group = _group(arguments)
        buffers = [size for size in map(_bytes, [*arguments, out]) if size]
        # The larger of input and output is the whole buffer: a gather's output, a scatter's input.
        whole = max(buffers, default=0)
        if name in _EXCHANGES:
            label, sent = "all_to_all", _exchanged(arguments, group)
        elif name in _ROOTED:
            part = min(buffers, default=0)
            whole, label, sent = part * group.size(), name, float(part * (group.size() - 1))
        else:
            label, share = _RING[name]
            sent = whole * share(group.size())
        entry = self.by_op.setdefault(label, {"calls": 0, "bytes": 0.0, "control": 0.0})
        entry["calls"] += 1
        entry["control" if whole <= CONTROL else "bytes"] += sent
        if whole > CONTROL:
            ranks = tuple(dist.get_process_group_ranks(group))
            if label == "send":
                ranks = tuple(sorted((dist.get_rank(), ranks[next(a for a in arguments if isinstance(a, int))])))
            self.by_group[ranks] = self.by_group.get(ranks, 0.0) + sent

    @property
    def bytes(self) -> float:
        """Bytes of data that this rank sent."""
        return sum(entry["bytes"] for entry in self.by_op.values())

    @property
    def control(self) -> float:
        """Bytes of losses, norms and flags."""
        return sum(entry["control"] for entry in self.by_op.values())


def _bytes(argument: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(argument) if isinstance(leaf, torch.Tensor))


def _exchanged(arguments: list[Any], group: dist.ProcessGroup) -> float:
    """Bytes of an all-to-all that leave this rank."""
    given = [argument for argument in arguments if any(isinstance(x, torch.Tensor) for x in tree_leaves(argument))]
    parts = given[-1]  # the input is the argument after the output
    if not isinstance(parts, torch.Tensor):
        return float(_bytes(parts) - parts[group.rank()].nbytes)
    if not parts.nbytes:  # this rank sends nothing
        return 0.0
    splits = [a for a in arguments if isinstance(a, list | tuple) and a and all(isinstance(n, int) for n in a)]
    own = splits[-1][group.rank()] / sum(splits[-1]) if splits else 1 / group.size()
    return parts.nbytes * (1 - own)


def _group(arguments: list[Any]) -> dist.ProcessGroup:
    leaves = tree_leaves(arguments)
    for leaf in leaves:
        if isinstance(leaf, dist.ProcessGroup):
            return leaf
        if isinstance(leaf, torch.ScriptObject):  # a reduction's operator has the same type, but comes later
            return dist.ProcessGroup.unbox(leaf)
    name = [leaf for leaf in leaves if isinstance(leaf, str)][-1]  # functional: the last argument
    return torch._C._distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]
