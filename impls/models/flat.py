"""Parameters as views of one contiguous buffer: one collective and one optimizer kernel serve them all."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def distinct(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Tied parameters once."""
    return list(dict.fromkeys(parameters))


def views(buffer: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive pieces of ``buffer`` in the parameters' shapes; what is left at its end is padding."""
    pieces = buffer[: sum(p.numel() for p in parameters)].split([p.numel() for p in parameters])
    return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]


def flatten(parameters: Sequence[nn.Parameter], multiple: int = 1) -> Tensor:
    """Moves parameters into a new buffer, its length rounded up to ``multiple``; they become views of it."""
    size = sum(p.numel() for p in parameters)
    buffer = parameters[0].new_zeros(-(-size // multiple) * multiple)
    with torch.no_grad():
        for parameter, view in zip(parameters, views(buffer, parameters), strict=True):
            parameter.data = view.copy_(parameter)
    return buffer
