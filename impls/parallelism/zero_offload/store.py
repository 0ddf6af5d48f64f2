"""A file that serves as slow memory: direct, asynchronous reads and writes of whole blocks.

ZeRO-Infinity's engine for NVMe (Rajbhandari et al. 2021, §6.3): bulk transfers past the page cache between the device
and a few reused, aligned (on CUDA: pinned) buffers, which overlap with the computation.

    stream    read    0 │ 1 │ 2 │ 3 │              three buffers go round: while piece i is computed on,
              compute   │ 0 │ 1 │ 2 │ 3 │          piece i + 1 is read and piece i − 1 is written
              write         │ 0 │ 1 │ 2 │ 3

The file is in ``folder``, by default that of ``tempfile`` (TMPDIR or /tmp), and has no name: the kernel frees its
blocks when the process ends for any reason.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from impls.parallelism.zero_offload.laws import BLOCK, RING, padded

Extent = tuple[int, int]  # offset and length in bytes


def aligned(size: int, pinned: bool = False) -> Tensor:
    """Bytes, ``size`` rounded up to whole blocks, at an address that is a multiple of BLOCK."""
    whole = torch.empty(padded(size) + BLOCK, dtype=torch.uint8, pin_memory=pinned)
    start = -whole.data_ptr() % BLOCK
    return whole[start : start + padded(size)]


class Store:
    """``size`` bytes in a file, as long as the object lives. Raises a one-line OSError if the folder is missing,
    read-only or too full for them."""

    def __init__(self, size: int, folder: str = "") -> None:
        self.folder, self.size, self.fallback = folder or tempfile.gettempdir(), padded(size), ""
        with self._clear("cannot make a file"):
            self.file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)  # deleting the store deletes the file
        with self._clear(f"cannot take {self.size:,} bytes"):
            self._reserve()
        self._go_direct()
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="store")  # one read and one write at once

    def _reserve(self) -> None:
        """Allocates the blocks now, so that a disk that is too small fails here and not during training."""
        try:
            os.posix_fallocate(self.file.fileno(), 0, self.size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(self.file.fileno(), self.size)

    def _go_direct(self) -> None:
        flags = fcntl.fcntl(self.file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.file, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:
            self.fallback = f"{self.folder} does not support O_DIRECT: its files go through the page cache"

    @contextlib.contextmanager
    def _clear(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(error.errno, f"{what} in {self.folder} for offloaded states: {reason}") from error

    def read(self, offset: int, into: Tensor) -> Future[None]:
        """Starts to fill ``into``, aligned bytes, which must not be used until the result is available."""
        return self.threads.submit(self._transfer, os.preadv, offset, into)

    def write(self, offset: int, data: Tensor) -> Future[None]:
        """Starts to write ``data``, aligned bytes, which must not change until the result is available."""
        return self.threads.submit(self._transfer, os.pwritev, offset, data)

    def _transfer(self, call: Callable[..., int], offset: int, data: Tensor) -> None:
        view, done = memoryview(data.numpy()), 0
        while done < len(view):
            with self._clear(f"{call.__name__} of {len(view):,} bytes at {offset:,} failed"):
                moved = call(self.file.fileno(), [view[done:]], offset + done)
            if not moved:
                end = os.fstat(self.file.fileno()).st_size
                raise EOFError(f"the file in {self.folder} ends at {end:,} of {self.size:,} bytes: it was truncated")
            done += moved

    def stream(self, extents: Sequence[Extent], buffers: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields each extent's bytes in turn, to be changed in place; then they are written back. ``buffers``: RING
        aligned ones.

        Yielded bytes belong to the caller until it requests the next.
        """
        reads: dict[int, Future[None]] = {}
        writes: dict[int, Future[None]] = {}

        def ahead(index: int) -> None:
            if index < len(extents):
                if index - RING in writes:
                    writes.pop(index - RING).result()  # the buffer's last use
                offset, length = extents[index]
                reads[index] = self.read(offset, buffers[index % RING][: padded(length)])

        try:
            ahead(0)
            for index, (offset, length) in enumerate(extents):
                ahead(index + 1)
                reads.pop(index).result()
                view = buffers[index % RING][: padded(length)]
                yield view[:length]
                writes[index] = self.write(offset, view)
            for writing in writes.values():
                writing.result()
        finally:
            wait([*reads.values(), *writes.values()])  # no transfer still uses buffers that may be freed
