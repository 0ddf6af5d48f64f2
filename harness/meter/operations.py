"""What a step really computes on a rank: floating-point operations of its products, and the bytes of its operators."""

import functools
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@functools.cache
def _formula(operator: Any) -> Any:
    """PyTorch has formulas for ``addmm`` and for the kernels of attention on CUDA, and none for ``addmm_`` and for the
    same kernels on a CPU."""
    name = operator._overloadpacket.__name__.removesuffix("_").replace("_for_cpu", "")
    return flop_registry.get(operator._overloadpacket) or flop_registry.get(getattr(torch.ops.aten, name, None))


class Operations(TorchDispatchMode):
    """Counts while it is active.

    counted   operations of matrix products, attention and convolutions, by PyTorch's own formulas: 2·m·n·k for a
              product. Element by element operations do not count
    moved     bytes of the tensors that each operator takes and makes, as if nothing stayed in a cache between two of
              them. Views are free
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted: int = 0
        self.moved: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its own dispatch must run first: it contains the operators of this rank
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := _formula(func):
            self.counted += formula(*args, **kwargs, out_val=out)
        if func.namespace == "aten" and not func.is_view:
            touched = {id(leaf): leaf for leaf in tree_leaves([args, kwargs, out]) if isinstance(leaf, torch.Tensor)}
            self.moved += sum(tensor.nbytes for tensor in touched.values())
        return out
