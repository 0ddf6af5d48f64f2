"""Model states in files (Rajbhandari et al. 2021, §5.1.1, §6.2): memory holds only a few pieces at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate

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
    """As in :mod:`host`, but in the file a piece's rows are one record, [count, length], in the order of the steps."""

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


class Weights:
    """This rank's shards in the model's dtype. Reads run one unit ahead of the passes: the next step is expected to
    request units in the same order as this one (Rajbhandari et al. 2021, §6.2: the dynamic prefetcher)."""

    def __init__(self, sizes: Sequence[int], pieces: Sequence[Piece], dtype: torch.dtype, folder: str):
        self.pieces, self.dtype, self.added = pieces, dtype, 0
        self.extents = extents([size * dtype.itemsize for size in sizes])
        self.store = Store(sum(padded(length) for _, length in self.extents), folder)
        pinned = torch.cuda.is_available()
        self.reading = [aligned(max(length for _, length in self.extents), pinned) for _ in range(2)]
        self.writing = [aligned(max(p.length for p in pieces) * dtype.itemsize, pinned) for _ in range(2)]
        self.writes: list[Future[None]] = []
        self.copies: list[torch.cuda.Event | None] = [None, None]  # excluded from the buffers for reading
        self.coming: tuple[int, int, Future[None]] | None = None  # unit, buffer, and the pending read
        self.order: list[int] = []
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
            self.coming[2].result()
        self.writes, self.coming = [], None
        self.last_order, self.order = self.order, []

    def fetch(self, unit: int, into: Tensor) -> None:
        """Copies a unit's weights into place once they are read, and starts to read the next unit's."""
        if self.coming is not None and self.coming[0] != unit:
            self.coming[2].result()
            self.coming = None
        _, index, done = self.coming or self._read(unit, 0)
        done.result()
        length = self.extents[unit][1]
        into.copy_(self.reading[index][:length].view(self.dtype), non_blocking=True)
        if into.is_cuda:
            self.copies[index] = torch.cuda.current_stream().record_event()
        self.order.append(unit)
        ahead = self.last_order[len(self.order) : len(self.order) + 1]
        self.coming = self._read(ahead[0], 1 - index) if ahead else None

    def _read(self, unit: int, index: int) -> tuple[int, int, Future[None]]:
        copied = self.copies[index]
        if copied is not None:
            copied.synchronize()
        offset, length = self.extents[unit]
        return unit, index, self.store.read(offset, self.reading[index][: padded(length)])
