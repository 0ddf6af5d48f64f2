"""Collectives that a step asks for: calls and bytes by operation and group, counted alike for every engine.

*Bytes* are what one rank sends in a ring, the algorithm with the least traffic: 2(N−1)/N of the buffer for an
all-reduce, (N−1)/N for a gather, scatter or all-to-all. What a backend really moves may be more: gloo's reduce-scatter
is an all-reduce inside.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONTROL = 256  # bytes: a smaller buffer is a loss, a norm or a flag, not data

# operator → (name, share of the whole buffer that one of n ranks sends in a ring)
_RING = {
    "allreduce": ("all_reduce", lambda n: 2 * (n - 1) / n),
    "all_reduce": ("all_reduce", lambda n: 2 * (n - 1) / n),
    "reduce_scatter": ("reduce_scatter", lambda n: (n - 1) / n),
    "allgather": ("all_gather", lambda n: (n - 1) / n),
    "all_gather": ("all_gather", lambda n: (n - 1) / n),
    "alltoall": ("all_to_all", lambda n: (n - 1) / n),
    "all_to_all": ("all_to_all", lambda n: (n - 1) / n),
    "broadcast": ("broadcast", lambda n: (n - 1) / n),
    "reduce": ("reduce", lambda n: (n - 1) / n),
    "gather": ("gather", lambda n: (n - 1) / n),
    "scatter": ("scatter", lambda n: (n - 1) / n),
    "send": ("send", lambda n: 1.0),
}
_SILENT = ("wait_tensor", "wrap_tensor_autograd", "barrier", "monitored_barrier", "recv", "recv_any_source")


def _operation(name: str) -> str:
    """``"_allgather_base_"`` → ``"allgather"``."""
    plain = name.strip("_")
    for ending in ("_coalesced", "_into_tensor", "_tensor", "_base", "_single", "_out"):
        while ending in plain:
            plain = plain.replace(ending, "")
    return plain.strip("_")


class Traffic(TorchDispatchMode):
    """Counts while it is active. ``by_op``: name → {"calls", "bytes", "control"}, this rank's."""

    def __init__(self) -> None:
        super().__init__()
        self.by_op: dict[str, dict[str, float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace in ("c10d", "_c10d_functional"):
            self._count(name, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _count(self, raw: str, args: Any, kwargs: Any) -> None:
        if raw.strip("_") in _SILENT:
            return
        name = _operation(raw)
        if name not in _RING:
            raise ValueError(f"the traffic meter does not know the collective {raw!r}: add it to _RING")
        label, share = _RING[name]
        leaves = tree_leaves((args, kwargs))
        size = _group_size(leaves)
        # The larger of input and output is the whole buffer: a gather's output, a scatter's input.
        arguments = [*args, *kwargs.values()]
        whole = max((_bytes(argument) for argument in arguments), default=0)
        sent = whole * share(size)
        entry = self.by_op.setdefault(label, {"calls": 0, "bytes": 0.0, "control": 0.0})
        entry["calls"] += 1
        entry["control" if whole <= CONTROL else "bytes"] += sent

    @property
    def bytes(self) -> float:
        """Bytes of data that this rank asked to be sent."""
        return sum(entry["bytes"] for entry in self.by_op.values())

    @property
    def control(self) -> float:
        """Bytes of losses, norms and flags."""
        return sum(entry["control"] for entry in self.by_op.values())


def _bytes(argument: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(argument) if isinstance(leaf, torch.Tensor))


def _group_size(leaves: list[Any]) -> int:
    for leaf in leaves:
        if isinstance(leaf, dist.ProcessGroup):
            return leaf.size()
        if isinstance(leaf, torch.ScriptObject):
            return dist.ProcessGroup.unbox(leaf).size()
        if isinstance(leaf, str) and not leaf.startswith(("sum", "avg", "max", "min", "prod", "product")):
            return int(torch._C._distributed_c10d._resolve_process_group(leaf).size())
    return dist.get_world_size()
