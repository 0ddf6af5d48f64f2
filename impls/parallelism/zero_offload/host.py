"""Model states in the host's memory (Ren et al. 2021, §3.3): on CUDA pinned, so that copies can overlap."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from impls.parallelism.zero.unit import Unit
from impls.parallelism.zero_offload.pieces import Piece

Rows = Sequence[Tensor]  # the master weights p and, of AdamW, both moments m and v


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def moved(tensor: Tensor) -> Tensor:
    """On the host: a copy, or on CPU ranks the tensor itself, since device and host are one memory there."""
    return empty(tensor.shape, tensor.dtype).copy_(tensor) if tensor.is_cuda else tensor


class States:
    """What the optimizer holds of each unit: ``count`` rows of [size]."""

    fallback = ""

    def __init__(self, sizes: Sequence[int], pieces: Sequence[Piece], count: int, dtype: torch.dtype, folder: str):
        self.pieces, self.count = pieces, count
        self.rows: list[Rows] = []

    def add(self, master: Tensor) -> None:
        """Takes over the next unit's master weights; its moments are zero."""
        p = moved(master)
        self.rows.append([p, *(empty(p.shape, p.dtype).zero_() for _ in range(self.count - 1))])

    def stream(self) -> Iterator[tuple[Piece, Rows]]:
        """Each piece with its states, rows of [length], to be stepped in place."""
        for piece in self.pieces:
            yield piece, [row[piece.place] for row in self.rows[piece.unit]]

    def master(self, unit: int) -> Tensor:
        return self.rows[unit][0]


class Weights:
    """This rank's shards in the model's dtype, so that no wider ones go to the device in stage 3.

    On CPU ranks masters on the host serve, and are rounded on their way.
    """

    def __init__(self, sizes: Sequence[int], pieces: Sequence[Piece], dtype: torch.dtype, states: States, folder: str):
        self.states = states
        apart = torch.cuda.is_available() or not isinstance(states, States)
        self.shards = [empty((size,), dtype) for size in sizes] if apart else []

    def put(self, piece: Piece, values: Tensor) -> None:
        if self.shards:
            self.shards[piece.unit][piece.place].copy_(values)

    def flush(self) -> None:
        """Nothing is under way."""

    def fetch(self, unit: int, into: Tensor) -> None:
        into.copy_(self.shards[unit] if self.shards else self.states.master(unit), non_blocking=True)


class Resident:
    """The weights of stage 2 stay on the device, where the host's new ones go, rounded before they are sent."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.narrow: dict[int, Tensor] = {}

    def put(self, piece: Piece, values: Tensor) -> None:
        unit = self.units[piece.unit]
        place = unit.full[unit.mine][piece.place]
        if place.is_cuda:
            if piece.unit not in self.narrow:
                self.narrow[piece.unit] = empty(unit.full[unit.mine].shape, place.dtype)
            place.copy_(self.narrow[piece.unit][piece.place].copy_(values), non_blocking=True)
        elif place.data_ptr() != values.data_ptr():  # else the master is the weight itself
            place.copy_(values)

    def flush(self) -> None:
        """Nothing that the device's stream does not order."""

    def fetch(self, unit: int, into: Tensor) -> None:
        raise RuntimeError("the weights of stage 2 are on the device already")
