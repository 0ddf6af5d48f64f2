"""Other honest arithmetic for the same formula: applies the reorderings of fused and tiled kernels to the plain one."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LOG2_E = 1.4426950408889634


class Reordered(TorchDispatchMode):
    """Matrix products and sums add in another order, drawn from ``seed``. With ``fused``, products share a scale
    between their operands, and softmax uses powers of two, as attention kernels do. No value is rounded to the
    operands' dtype more often than before."""

    def __init__(self, seed: int, fused: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator, self.fused = torch.Generator().manual_seed(seed), fused

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the check costs microseconds per operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in ("aten::mm", "aten::bmm"):
            order = self._order(args[0], -1)
            left, right = args[0].index_select(-1, order), args[1].index_select(-2, order)
            if self.fused and left.dtype.itemsize >= 4:
                left, right = left * 3.0, right * (1 / 3)  # a scale by which division is exact
            return func(left, right)
        if name == "aten::sum" and len(args) > 1 and args[1] and len(args[1]) == 1:
            (dim,) = args[1]
            return func(args[0].index_select(dim, self._order(args[0], dim)), *args[1:], **(kwargs or {}))
        if self.fused and name == "aten::_softmax":
            return _log2_softmax(*args[:2]).exp2().to(args[0].dtype)
        if self.fused and name == "aten::_log_softmax":
            return _log2_softmax(*args[:2]).div(LOG2_E).to(args[0].dtype)
        return func(*args, **(kwargs or {}))

    def _order(self, tensor: Tensor, dim: int) -> Tensor:
        return torch.randperm(tensor.shape[dim], generator=self.generator).to(tensor.device)


def _log2_softmax(x: Tensor, dim: int) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32)) * LOG2_E
    largest = x.amax(dim, keepdim=True)
    return x - ((x - largest).exp2().sum(dim, keepdim=True).log2() + largest)
