"""Parameters as views of one contiguous buffer: one collective and one optimizer kernel serve them all."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor, nn

LARGEST = 25 * 2**20  # bytes: enough to use the network's full bandwidth (Li et al. 2020, §3.2.3)
FEWEST = 4  # runs, unless they are small: fewer would not overlap, and the copy of a single run would matter
SMALLEST = 2**16  # bytes: a smaller message takes as long


def distinct(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Lists tied parameters once."""
    return list(dict.fromkeys(parameters))


def runs(
    parameters: Sequence[nn.Parameter], smallest: int = SMALLEST, fewest: int = FEWEST
) -> list[list[nn.Parameter]]:
    """Neighbours that travel together; a run has at most the best number of bytes, or one parameter."""
    room = min(LARGEST, max(smallest, sum(p.nbytes for p in parameters) // fewest))
    found: list[list[nn.Parameter]] = []
    for parameter in parameters:
        if not found or sum(p.nbytes for p in found[-1]) + parameter.nbytes > room:
            found.append([])
        found[-1].append(parameter)
    return found


def views(buffer: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive pieces of ``buffer`` in the parameters' shapes; the rest at its end is padding."""
    pieces = buffer[: sum(p.numel() for p in parameters)].split([p.numel() for p in parameters])
    return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]


def flatten_gradients(parameters: Sequence[nn.Parameter], buffer: Tensor) -> None:
    """Moves the parameters' gradients into ``buffer``, of which they become views; its padding becomes 0, and so does a
    gradient that does not exist. This costs less than adding them to a buffer of zeros if it happens when all gradients
    exist, since activations have been freed by then."""
    places = views(buffer, parameters)
    torch._foreach_copy_(places, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
    buffer[sum(p.numel() for p in parameters) :] = 0
    for parameter, place in zip(parameters, places, strict=True):
        parameter.grad = place


def when_complete(parameters: Sequence[nn.Parameter], then: Callable[[], None]) -> None:
    """Calls ``then``, which takes the gradients, in every later backward pass as soon as all of them exist."""

    def arrived(_: Tensor) -> None:
        if all(p.grad is not None for p in parameters):
            then()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(arrived)


def in_order(groups: Sequence[Sequence[nn.Parameter]], then: Callable[[int], None]) -> None:
    """Calls ``then(i)``, which takes the gradients of group i, in every later backward pass: for the last group first,
    and for each one as soon as its gradients exist, or at the end of the pass.

    Ranks' collectives match by their order alone, and a rank's data may leave out layers, whose gradients never exist.
    """
    left: list[int] = []  # in this pass
    first = groups[0][0]  # the embedding, whose gradient ends a pass

    def arrived(parameter: Tensor) -> None:
        left[:] = left or range(len(groups))
        while left and (parameter is first or all(p.grad is not None for p in groups[left[-1]])):
            then(left.pop())

    for parameter in chain.from_iterable(groups):
        parameter.register_post_accumulate_grad_hook(arrived)


def flatten(parameters: Sequence[nn.Parameter], multiple: int = 1) -> Tensor:
    """Moves parameters into a new buffer, its length rounded up to ``multiple``; they become views of it."""
    size = sum(p.numel() for p in parameters)
    buffer = parameters[0].new_zeros(-(-size // multiple) * multiple)
    with torch.no_grad():
        for parameter, view in zip(parameters, views(buffer, parameters), strict=True):
            parameter.data = view.copy_(parameter)
    return buffer


def gathered(part: Tensor, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> list[Tensor]:
    """Every rank's ``part`` [Ψ/N] of a flat buffer, as tensors in the parameters' shapes."""
    whole = part.new_empty(part.numel() * group.size())
    dist.all_gather_into_tensor(whole, part, group=group)
    return views(whole, parameters)
