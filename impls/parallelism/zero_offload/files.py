"""Model states in files (Rajbhandari et al. 2021, §5.1.1, §6.2): memory holds only a few pieces at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from impls.parallelism.zero_offload.host import Piece, Rows
from impls.parallelism.zero_offload.laws import RING, padded
from impls.parallelism.zero_offload.store import Store, aligned


def extents(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Offset and length of consecutive records, each of which starts at a block boundary."""
    offsets = accumulate((padded(length) for length in lengths), initial=0)
    return list(zip(offsets, lengths, strict=False))


class States:
    """As in :mod:`host`. A piece's rows of p, m and v are one record of the file, so that one read brings all three:

    file    │ p m v of piece 0 │ p m v of piece 1 │ …
    """

    def __init__(self, sizes: Sequence[int], pieces: Sequence[Piece], count: int, dtype: torch.dtype, folder: str):
        self.pieces, self.sizes, self.count, self.dtype, self.added = pieces, sizes, count, dtype, 0
        self.extents = extents([count * piece.length * dtype.itemsize for piece in pieces])
        self.store = Store(sum(padded(length) for _, length in self.extents), folder)
        self.fallback = self.store.fallback
        most = max(length for _, length in self.extents)
        self.buffers = [aligned(most, torch.cuda.is_available()) for _ in range(RING)]

    def _rows(self, data: Tensor) -> Tensor:
        return data.view(self.dtype).view(self.count, -1)

    def _of(self, unit: int) -> Iterator[tuple[slice, int, int]]:
        """A unit's pieces: position in the shard, and offset and length in the file."""
        for piece, (offset, length) in zip(self.pieces, self.extents, strict=True):
            if piece.unit == unit:
                yield piece.place, offset, length

    def add(self, master: Tensor) -> Tensor:
        """Writes the next unit's master weights and its moments, which are zero."""
        for place, offset, length in self._of(self.added):
            buffer = self.buffers[0].zero_()
            self._rows(buffer[:length])[0].copy_(master[place])
            self.store.write(offset, buffer[: padded(length)]).result()
        self.added += 1
        return master

    def stream(self) -> Iterator[tuple[Piece, Rows]]:
        for piece, data in zip(self.pieces, self.store.stream(self.extents, self.buffers), strict=True):
            yield piece, self._rows(data).unbind()

    def master(self, unit: int) -> Tensor:
        whole = torch.empty(self.sizes[unit], dtype=self.dtype)
        for place, offset, length in self._of(unit):
            buffer = self.buffers[0]
            self.store.read(offset, buffer[: padded(length)]).result()
            whole[place] = self._rows(buffer[:length])[0]
        return whole


class Read(NamedTuple):
    """A unit's weights on their way from the file to ``reading[index]``."""

    unit: int
    index: int
    done: Future[None]


class Weights:
    """This rank's shards in the model's dtype. Reads run one unit ahead of the passes: the next step is expected to
    request units in the same order as this one (Rajbhandari et al. 2021, §6.2: the dynamic prefetcher).

        compute      │ unit 0 │ unit 1 │ unit 2 │        read unit 0 into buffer 0, unit 1 into buffer 1, unit 2 into
        read  unit 0 │ unit 1 │ unit 2 │ unit 3 │        buffer 0 …: a buffer is free once it was copied to the device
    """

    def __init__(self, sizes: Sequence[int], pieces: Sequence[Piece], dtype: torch.dtype, folder: str):
        self.pieces, self.dtype, self.added = pieces, dtype, 0
        self.extents = extents([size * dtype.itemsize for size in sizes])
        self.store = Store(sum(padded(length) for _, length in self.extents), folder)
        pinned = torch.cuda.is_available()
        self.reading = [aligned(max(length for _, length in self.extents), pinned) for _ in range(2)]
        self.writing = [aligned(max(p.length for p in pieces) * dtype.itemsize, pinned) for _ in range(2)]
        self.writes: list[Future[None]] = []  # at most one for each buffer of ``writing``
        self.copies: list[torch.cuda.Event | None] = [None, None]  # from each buffer of ``reading`` to the device
        self.coming: Read | None = None
        self.order: list[int] = []  # the units that this step has requested so far
        self.last_order: list[int] = []

    def add(self, master: Tensor) -> None:
        """Appends the next unit's weights."""
        for piece in self.pieces:
            if piece.unit == self.added:
                self.put(piece, master[piece.place])
        self.added += 1

    def put(self, piece: Piece, values: Tensor) -> None:
        """Rounds a piece's new weights and starts to write them."""
        if len(self.writes) == 2:
            self.writes.pop(0).result()
        offset = self.extents[piece.unit][0] + piece.start * self.dtype.itemsize
        buffer = self.writing[0]
        self.writing.reverse()
        buffer.view(self.dtype)[: piece.length].copy_(values)
        self.writes.append(self.store.write(offset, buffer[: padded(piece.length * self.dtype.itemsize)]))

    def flush(self) -> None:
        """Waits for pending writes; discards reads of older weights."""
        for write in self.writes:
            write.result()
        if self.coming is not None:
            self.coming.done.result()
        self.writes, self.coming = [], None
        self.last_order, self.order = self.order, []

    def fetch(self, unit: int, into: Tensor) -> None:
        """Copies a unit's weights into place once they are read, and starts to read the next unit's."""
        # 1. Wait for the read that was started ahead; if it was of another unit, read this one.
        if self.coming is not None and self.coming.unit != unit:
            self.coming.done.result()
            self.coming = None
        read = self.coming or self._read(unit, 0)
        read.done.result()
        # 2. Copy to the device.
        length = self.extents[unit][1]
        into.copy_(self.reading[read.index][:length].view(self.dtype), non_blocking=True)
        if into.is_cuda:
            self.copies[read.index] = torch.cuda.current_stream().record_event()
        # 3. Start to read the unit that the last step requested next, into the other buffer.
        self.order.append(unit)
        position, self.coming = len(self.order), None
        if position < len(self.last_order):
            self.coming = self._read(self.last_order[position], 1 - read.index)

    def _read(self, unit: int, index: int) -> Read:
        copied = self.copies[index]
        if copied is not None:
            copied.synchronize()  # the buffer's previous unit is on the device
        offset, length = self.extents[unit]
        return Read(unit, index, self.store.read(offset, self.reading[index][: padded(length)]))
