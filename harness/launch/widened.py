"""Products of bfloat16 or float16 matrices on a CPU without instructions for them, where PyTorch's own take ten to a
hundred times as long as in float32.

They are computed in float32 here and rounded once, as tensor cores and the missing instructions do: beyond float16's
largest number the result is infinite. This happens below the level that autograd and meters see, and is the same for
every engine and for the oracle. Timed steps never use it.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from harness.spec import TORCH_NAMES

NOTE = "no {} instructions: matrix products are computed in float32 and rounded once"
NARROW = (torch.bfloat16, torch.float16)


def needed(dtype: str) -> bool:
    """Whether PyTorch computes products of this precision one number at a time here."""
    if dtype not in ("bf16", "fp16") or torch.cuda.is_available():
        return False
    return not (torch._C._has_mkldnn and getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported")())


def note(dtype: str) -> str:
    return NOTE.format(TORCH_NAMES[dtype])


def install() -> torch.library.Library:
    """Computes products in this process this way for as long as the result lives."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")  # which is what is meant
        for name, kernel in {"mm": _product, "bmm": _product, "addmm": _added, "baddbmm": _added}.items():
            library.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]
    return library


@torch.no_grad()
def _product(left: Tensor, right: Tensor) -> Tensor:
    out = left.new_empty((*left.shape[:-1], right.shape[-1]))
    if left.dtype not in NARROW:  # PyTorch's own kernel, through another overload
        return _multiply(left, right, out)
    return out.copy_(_wide_product(left, right))


@torch.no_grad()
def _added(addend: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    out = left.new_empty((*left.shape[:-1], right.shape[-1]))
    if left.dtype not in NARROW:
        add = torch.addmm if left.dim() == 2 else torch.baddbmm
        return add(addend, left, right, beta=beta, alpha=alpha, out=out)
    found = _wide_product(left, right).mul_(alpha)
    return out.copy_(found.add_(addend, alpha=beta) if beta else found)


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    return _multiply(_wide(left), _wide(right), _scratch((*left.shape[:-1], right.shape[-1])))


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    return (torch.mm if left.dim() == 2 else torch.bmm)(left, right, out=out)


def _wide(x: Tensor) -> Tensor:
    """A copy in float32, laid out like ``x``."""
    if x.mT.is_contiguous():
        return _scratch(x.mT.shape).copy_(x.mT).mT
    return _scratch(x.shape).copy_(x)


def _scratch(shape: tuple[int, ...]) -> Tensor:
    """float32 in memory outside PyTorch: it is not the engine's, so no meter may count it."""
    return torch.from_numpy(np.empty(shape, dtype=np.float32))
