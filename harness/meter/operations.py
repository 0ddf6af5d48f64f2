"""Floating-point operations of the products that a step really computes, forward and backward."""

import functools
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@functools.cache
def _formula(operator: Any) -> Any:
    """PyTorch has formulas for ``addmm``, and none for its form in place, ``addmm_``."""
    name = operator._overloadpacket.__name__.removesuffix("_")
    return flop_registry.get(operator._overloadpacket) or flop_registry.get(getattr(torch.ops.aten, name, None))


class Operations(TorchDispatchMode):
    """``counted``: operations of matrix products, attention and convolutions while it was active, by PyTorch's own
    formulas: 2·m·n·k for a product. Element by element operations do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := _formula(func):
            self.counted += formula(*args, **(kwargs or {}), out_val=out)
        return out
