"""What a step computes on a rank: the FLOPs of its matrix products, and the bytes that its operators read and write."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Work(TorchDispatchMode):
    """Counts while it is active: ``flops`` by PyTorch's own formulas, and ``bytes`` of the tensors that each operator
    takes and makes, as if nothing stayed in a cache between two of them. Views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its own dispatch must run first: it contains the operators of this rank
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "aten" and not func.is_view:
            if formula := flop_registry.get(func._overloadpacket):
                self.flops += formula(*args, **kwargs, out_val=out)
            touched = {id(x): x for x in tree_leaves([args, kwargs, out]) if isinstance(x, torch.Tensor)}
            self.bytes += sum(x.nbytes for x in touched.values())
        return out
