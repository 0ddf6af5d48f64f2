"""The host's side of ZeRO-Offload (Ren et al. 2021, §3.3, §5.1): the states and their copies in both directions.

    device → host   a unit's gradient, once it is reduced, while the backward pass goes on below it
    host → device   new weights, rounded on the host: in stage 2 after each piece's step, in stage 3 before each pass

On CUDA the host's memory is pinned and copies have a stream of their own, so that they overlap with the computation. On
CPU ranks device and host are one memory, so nothing is copied.

    Ψ_u  parameters of a unit       N_d  ranks       n  elements of a piece
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from impls.parallelism.zero.hooks import Wait, all_gather
from impls.parallelism.zero.optimizer import reduce_scatter

Rows = Sequence[Tensor]  # p and, for AdamW, m and v, each [n]


class Piece(NamedTuple):
    """A tile of a unit's shard: it is stepped while the previous one is copied (§5.1)."""

    unit: int
    start: int
    length: int

    @property
    def place(self) -> slice:
        return slice(self.start, self.start + self.length)


def cut(sizes: Sequence[int], most: int) -> list[Piece]:
    """Shards of these sizes in pieces of at most ``most`` elements, in order; no piece spans two units."""
    return [
        Piece(unit, start, min(most, size - start)) for unit, size in enumerate(sizes) for start in range(0, size, most)
    ]


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def moved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A buffer on the host in this dtype."""
    if tensor.dtype == dtype and not tensor.is_cuda:
        return tensor
    return empty(tensor.shape, dtype).copy_(tensor)


@contextlib.contextmanager
def beside(copies: torch.cuda.Stream | None) -> Iterator[None]:
    """Queues the work inside on the copies' stream: after all work queued so far, and beside later work. Without CUDA
    it does nothing."""
    if copies is not None:
        copies.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(copies):
        yield


def reduced_to_host(whole: Tensor, group: dist.ProcessGroup, copies: torch.cuda.Stream | None) -> Callable[[], Tensor]:
    """Starts to reduce a gradient [Ψ_u]; waiting copies this rank's part [Ψ_u/N_d] to the host. The reducer waits once
    the next unit's gradient is queued on the device, so that the copy and that computation overlap."""
    reduced = reduce_scatter(whole, group)

    def wait() -> Tensor:
        with torch.cuda.stream(copies):
            part = reduced()  # [Ψ_u/N_d], on the device; the copies' stream waits for it
            there = empty(part.shape, part.dtype).copy_(part, non_blocking=True) if part.is_cuda else part
        if copies is not None:
            copies.synchronize()  # the host steps with these values next
        return there

    return wait


class States:
    """p, m and v in the host's memory, as float32: rows of [Ψ_u/N_d] for each unit."""

    fallback = ""

    def __init__(self, sizes: Sequence[int], pieces: Sequence[Piece], count: int, dtype: torch.dtype, folder: str):
        self.pieces, self.count, self.dtype = pieces, count, dtype
        self.rows: list[Rows] = []

    def add(self, master: Tensor) -> Tensor:
        """Stores the next unit's master weights; its moments are zero."""
        p = moved(master, self.dtype)  # [Ψ_u/N_d]
        self.rows.append([p, *(empty(p.shape, p.dtype).zero_() for _ in range(self.count - 1))])
        return p

    def stream(self) -> Iterator[tuple[Piece, Rows]]:
        """Yields each piece with its states, rows of [n], to be stepped in place."""
        for piece in self.pieces:
            yield piece, [row[piece.place] for row in self.rows[piece.unit]]

    def master(self, unit: int) -> Tensor:
        return self.rows[unit][0]


class Weights:
    """This rank's shards in the model's dtype: in stage 3 on the host, in stage 2 their destination on the device."""

    def __init__(self, sizes: Sequence[int], pieces: Sequence[Piece], dtype: torch.dtype, folder: str):
        self.dtype = dtype
        self.shards: list[Tensor] = []

    def add(self, master: Tensor) -> None:
        """Appends the next unit's weights, rounded; the masters themselves if they are no wider."""
        self.shards.append(moved(master, self.dtype))

    def put(self, piece: Piece, values: Tensor) -> None:
        """Stores a piece's new weights [n]; weights for a device are sent rounded, from pinned memory."""
        place = self.shards[piece.unit][piece.place]
        # A copy to a device runs on while ``values`` may be overwritten, so it starts from a buffer of its own.
        rounded = empty(values.shape, self.dtype).copy_(values) if place.is_cuda else values  # [n]
        place.copy_(rounded, non_blocking=True)

    def flush(self) -> None:
        """Does nothing: the device's stream orders all pending copies."""

    def fetch(self, unit: int, into: Tensor) -> None:
        into.copy_(self.shards[unit], non_blocking=True)


def fetched(
    unit: int, whole: Tensor, part: Tensor, weights: Any, group: dist.ProcessGroup, copies: torch.cuda.Stream | None
) -> Wait:
    """Starts to make a unit's weights whole on the device: copies this rank's part there, then gathers every rank's
    (Infinity, §6.1)."""
    own = whole.chunk(group.size())[group.rank()]  # [Ψ_u/N_d]
    with beside(copies):
        weights.fetch(unit, own)
        return all_gather(whole, own, group)
