"""A segment whose intermediate results are dropped, and computed again in the backward pass (Chen et al. 2016, §3,
algorithm 1, "backpropagation with data dropping").

    forward     y = f(x) without a graph; x and the state r of the random generators are kept
    backward    r is restored; y = f(x) again, now with a graph, from copies x' of x that are leaves of a graph of their
                own; ∂L/∂y goes through that graph and leaves ∂L/∂x' in x', and parameters' gradients where they belong

By operator (ibid., §4.2, "drop the results of low cost operations"): the results of the operators of a policy are kept
too, and f's second run takes them in order, instead of computing them. On the host: x waits in the host's memory. A CPU
rank's device is its host, so x is copied there as well, and its first copy is freed: as many bytes as before.
"""

from collections.abc import Callable, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode

States = tuple[Tensor, Tensor | None]
Run = Callable[..., Tensor | tuple[Tensor, ...]]


def random_states() -> States:
    """The states of the CPU's generator and of this rank's GPU, from which dropout draws."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def restore(states: States) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])


def to_host(x: Tensor) -> Tensor:
    """A copy in the host's memory. The device does not wait for it: a stream frees x only after the copy."""
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
    return there.copy_(x, non_blocking=True)


class Keep(TorchDispatchMode):
    """Appends the results of the policy's operators to ``kept``."""

    def __init__(self, policy: Set[Any], kept: list[Tensor]) -> None:
        super().__init__()
        self.policy, self.kept = policy, kept

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator in self.policy:
            self.kept.append(result.detach())
        return result


class Take(Keep):
    """The same operators find their results in ``kept``; autograd, which is above, sees no difference."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.kept.pop(0) if operator in self.policy else operator(*args, **(kwargs or {}))


class Segment(Function):
    """``run(*inputs)`` with any number of tensors in and out. ``policy``: operators whose results are kept."""

    @staticmethod
    def forward(ctx: Any, run: Run, on_host: bool, policy: Set[Any], *inputs: Tensor) -> Any:
        ctx.run, ctx.policy, ctx.kept, ctx.random = run, policy, [], random_states()
        ctx.places = [(x.device, x.requires_grad) for x in inputs]
        with Keep(policy, ctx.kept):
            outputs = run(*inputs)  # autograd records nothing inside a Function
        # Only activations, not tables that all segments share, are worth a copy.
        ctx.save_for_backward(*(to_host(x) if on_host and x.requires_grad else x for x in inputs))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # 1. Inputs of a graph of its own.
        inputs = [
            x.to(device, non_blocking=True).detach().requires_grad_(differentiated)
            for x, (device, differentiated) in zip(ctx.saved_tensors, ctx.places, strict=True)
        ]
        # Gradients are taken as they arrive: x'.grad has the strides of x', with which kernels may add otherwise.
        found: dict[int, Tensor] = {}
        for index, x in enumerate(inputs):
            if x.requires_grad:
                x.register_hook(partial(found.__setitem__, index))
        # 2. The second run draws what the first one drew, and leaves later draws as they would have been.
        now = random_states()
        restore(ctx.random)
        with torch.enable_grad(), Take(ctx.policy, ctx.kept):
            outputs = ctx.run(*inputs)
        restore(now)
        # 3. The gradients of all outputs together: one after the other would need the graph twice.
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(y, dy) for y, dy in zip(outputs, gradients, strict=True) if y.requires_grad]
        torch.autograd.backward([y for y, _ in pairs], [dy for _, dy in pairs])
        return None, None, None, *map(found.get, range(len(inputs)))


def segment(run: Run, *inputs: Tensor, on_host: bool = False, policy: Set[Any] = frozenset()) -> Any:
    """``run(*inputs)``, whose intermediate results the backward pass computes again."""
    if not torch.is_grad_enabled():  # evaluation, or the first run of a segment around this one
        return run(*inputs)
    if not any(x.requires_grad for x in inputs):
        raise ValueError("no input of the segment requires a gradient, so its parameters would get none either")
    return Segment.apply(run, on_host, policy, *inputs)
