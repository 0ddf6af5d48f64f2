"""Activations: what autograd keeps from the forward pass for the backward pass."""

import gc
from typing import Any

import torch
from torch import Tensor, nn


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts while it is active. ``peak``: the most bytes that saved tensors held at any time, each storage once.

    What Python held before (weights, batches in use, optimizer states) and parameters gathered meanwhile are no
    activations. What an engine keeps outside autograd's graph is not seen.
    """

    def __init__(self) -> None:
        super().__init__(self._pack, self._unpack)
        self.peak = self._now = 0
        self._uses: dict[int, int] = {}  # storage → saved tensors that lie in it
        self._before: set[int] = set()

    def __enter__(self) -> "Saved":  # type: ignore[override]
        tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), Tensor))
        self._before = {_place(tensor) for tensor in tensors}
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Any:
        return _Kept(self, tensor)

    def _unpack(self, kept: Any) -> Tensor:
        tensor: Tensor = kept.tensor
        return tensor

    def hold(self, tensor: Tensor) -> int:
        """Counts it in; what :meth:`release` takes."""
        place = _place(tensor)
        if place in self._before or isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return 0
        self._uses[place] = self._uses.get(place, 0) + 1
        if self._uses[place] == 1:
            self._now += tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self._now)
        return place

    def release(self, place: int, size: int) -> None:
        if not place:
            return
        self._uses[place] -= 1
        if not self._uses[place]:
            del self._uses[place]
            self._now -= size


class _Kept:
    """A saved tensor, as long as the graph keeps it."""

    def __init__(self, saved: Saved, tensor: Tensor) -> None:
        self.tensor, self._saved = tensor, saved
        self._size = _local(tensor).untyped_storage().nbytes()
        self._place = saved.hold(_local(tensor))

    def __del__(self) -> None:
        self._saved.release(self._place, self._size)


def _local(tensor: Tensor) -> Tensor:
    """A DTensor's own shard."""
    return getattr(tensor, "_local_tensor", tensor)


def _place(tensor: Tensor) -> int:
    try:
        return _local(tensor).untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, meta and fake tensors have no storage of their own
        return 0
