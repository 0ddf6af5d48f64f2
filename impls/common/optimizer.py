"""The workload's optimizer, by PyTorch's own classes, with float32 master weights where the model is narrower."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.spec import Workload
from impls.common.mesh import device


def optimizer(parameters: Iterable[Any], workload: Workload, fused: bool = True) -> torch.optim.Optimizer:
    """Plain SGD or AdamW over the given tensors, or groups of them; the fused kernels need no temporaries."""
    if workload.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=workload.lr, weight_decay=workload.weight_decay, fused=fused)
    return torch.optim.AdamW(
        parameters,
        lr=workload.lr,
        betas=workload.betas,
        eps=workload.eps,
        weight_decay=workload.weight_decay,
        fused=fused,
    )


class MasterWeights:
    """Steps float32 copies of narrow parameters and rounds them back (Micikevicius et al. 2018, §3.1).

    If parameters are float32 or wider, there is no copy, and this is the optimizer itself.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        workload: Workload,
        make: Callable[[Iterable[Tensor], Workload], torch.optim.Optimizer] = optimizer,
    ) -> None:
        self.parameters: Sequence[nn.Parameter] = list(parameters)
        narrow = any(p.dtype.itemsize < 4 for p in self.parameters)
        self.masters = [p.detach().float().requires_grad_() for p in self.parameters] if narrow else self.parameters
        self.optimizer = make(self.masters, workload)

    def step(self) -> None:
        if self.masters is self.parameters:
            self.optimizer.step()
        else:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                assert parameter.grad is not None
                master.grad, parameter.grad = parameter.grad.float(), None
            self.optimizer.step()
            with torch.no_grad():
                for master, parameter in zip(self.masters, self.parameters, strict=True):
                    parameter.copy_(master)
        self.optimizer.zero_grad()


PIECE = 2**16  # elements that are widened at once


def square(tensors: Iterable[Tensor]) -> Tensor:
    """Σ x² over all elements, a float64 scalar on this rank's device; 0 without tensors. The tensors may be on several
    devices.

    Every square and sum is float64. PyTorch rounds a bfloat16 norm to bfloat16, up to 0.4 % off, and its CPU kernel
    adds float32 squares one after another: the norm of 4·10⁶ numbers is 8e-5 too small, that of 10⁸ one per cent.
    """
    total = torch.zeros((), dtype=torch.float64, device=device())
    for place, there in by_place(tensors).items():
        flat = (tensor.flatten() for tensor in there)
        pieces = [piece for each in flat for piece in (each.split(PIECE) if place.type == "cpu" else (each,))]
        total += torch.stack(torch._foreach_norm(pieces, dtype=torch.float64)).square().sum()
    return total


def clip(gradients: Sequence[Tensor], max_norm: float, norm: Tensor | None = None) -> None:
    """Scales gradients in place to a global norm of at most ``max_norm`` (0: never). ``norm`` is used if it is
    known."""
    if max_norm:
        norm = square(gradients).sqrt() if norm is None else norm
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for place, there in by_place(gradients).items():
            torch._foreach_mul_(there, scale.to(place))


def by_place(tensors: Iterable[Tensor]) -> dict[torch.device, list[Tensor]]:
    """The gradients of each device: if the states are on the host, so are gradients."""
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device, []).append(tensor)
    return found
