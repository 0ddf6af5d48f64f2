"""Parameters as views of one contiguous buffer: one collective and one optimizer kernel serve them all."""

from collections.abc import Callable, Iterable, Sequence

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
    """Moves the parameters' gradients into ``buffer``, of which they become views; its padding becomes 0. This costs
    less than adding them to a buffer of zeros if it happens when all gradients exist, since activations have been freed
    by then."""
    places = views(buffer, parameters)
    torch._foreach_copy_(places, [gradient for p in parameters if (gradient := p.grad) is not None])
    buffer[sum(p.numel() for p in parameters) :] = 0
    for parameter, place in zip(parameters, places, strict=True):
        parameter.grad = place


def when_complete(parameters: Sequence[nn.Parameter], then: Callable[[], None]) -> None:
    """Calls ``then`` in every later backward pass as soon as the gradients of all ``parameters`` exist."""
    missing = len(parameters)

    def arrived(_: Tensor) -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            missing = len(parameters)
            then()

    for parameter in parameters:
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
