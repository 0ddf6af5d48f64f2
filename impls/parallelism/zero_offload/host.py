"""Model states in the host's memory (Ren et al. 2021, §3.3): on CUDA pinned, so that copies can overlap."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from impls.parallelism.zero.unit import Unit
from impls.parallelism.zero_offload.pieces import Piece


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


class States:
    """What the optimizer holds of each unit, [rows, size]: the master weights and, of AdamW, both moments."""

    fallback = ""

    def __init__(
        self, sizes: Sequence[int], pieces: Sequence[Piece], rows: int, dtype: torch.dtype, folder: str
    ) -> None:
        self.pieces = pieces
        self.records = [empty((rows, size), dtype).zero_() for size in sizes]

    def fill(self, unit: int, master: Tensor) -> None:
        self.records[unit][0].copy_(master)

    def stream(self) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece with its states, [rows, length], to be stepped in place."""
        for piece in self.pieces:
            yield piece, self.records[piece.unit][:, piece.place]

    def master(self, unit: int) -> Tensor:
        return self.records[unit][0]


class Weights:
    """This rank's shards in the model's dtype, for the passes of stage 3. Where masters are no wider, they serve."""

    def __init__(
        self, sizes: Sequence[int], pieces: Sequence[Piece], dtype: torch.dtype, states: States, folder: str
    ) -> None:
        masters = [states.master(unit) for unit in range(len(sizes))]
        self.shared = masters[0].dtype == dtype
        self.shards = masters if self.shared else [empty((size,), dtype) for size in sizes]

    def put(self, piece: Piece, values: Tensor) -> None:
        if not self.shared:
            self.shards[piece.unit][piece.place].copy_(values)

    def flush(self) -> None:
        """Nothing is under way."""

    def fetch(self, unit: int, into: Tensor) -> None:
        into.copy_(self.shards[unit], non_blocking=True)


class Resident:
    """The weights of stage 2 stay on the device; the host's part goes there from a narrow copy."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.narrow: dict[int, Tensor] = {}

    def put(self, piece: Piece, values: Tensor) -> None:
        unit = self.units[piece.unit]
        shard = unit.full[unit.mine]
        if shard.is_cuda and piece.unit not in self.narrow:
            self.narrow[piece.unit] = empty(shard.shape, shard.dtype)
        rounded = self.narrow.get(piece.unit, shard)[piece.place].copy_(values)
        if shard.is_cuda:
            shard[piece.place].copy_(rounded, non_blocking=True)

    def flush(self) -> None:
        """Nothing that the device's stream does not order."""

    def fetch(self, unit: int, into: Tensor) -> None:
        raise RuntimeError("the weights of stage 2 are on the device already")
