"""The file-backed store: data of any size return unchanged, and a problem with the disk is a one-line error."""

import ctypes
import errno
import fcntl
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impls.parallelism.zero_offload import files, host
from impls.parallelism.zero_offload.host import cut
from impls.parallelism.zero_offload.laws import BLOCK, RING, longest, padded
from impls.parallelism.zero_offload.store import Store, aligned


@given(sizes=st.lists(st.integers(1, 500), min_size=1, max_size=6), most=st.integers(1, 200))
def test_pieces_cover_every_shard_once_and_in_order(sizes: list[int], most: int) -> None:
    pieces = cut(sizes, most)
    assert all(0 < piece.length <= most for piece in pieces)
    whole = [(unit, element) for unit, size in enumerate(sizes) for element in range(size)]
    assert [(p.unit, element) for p in pieces for element in range(p.start, p.place.stop)] == whole


@given(parameters=st.integers(1, 10**9), ranks=st.integers(1, 64))
def test_a_piece_of_any_dtype_is_a_number_of_blocks(parameters: int, ranks: int) -> None:
    assert longest(parameters, ranks) % BLOCK == 0
    assert longest(parameters, ranks) * 32 * ranks >= parameters


@given(size=st.integers(1, 3 * BLOCK))
def test_a_buffer_is_aligned_and_holds_what_was_asked_for(size: int) -> None:
    buffer = aligned(size)
    assert buffer.data_ptr() % BLOCK == 0
    assert buffer.numel() == padded(size) >= size


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=8), rounds=st.integers(1, 3))
def test_a_stream_hands_out_what_was_written_before(lengths: list[int], rounds: int) -> None:
    extents = files.extents(lengths)
    store = Store(sum(padded(length) for length in lengths))
    buffers = [aligned(max(lengths)) for _ in range(RING)]
    for turn in range(rounds):
        seen = 0
        for index, data in enumerate(store.stream(extents, buffers)):
            assert data.numel() == lengths[index]
            assert turn == 0 or bool((data == (7 * index + turn - 1) % 251).all())
            data.fill_((7 * index + turn) % 251)
            seen += 1
        assert seen == len(lengths)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=4),
    count=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_states_in_files_are_those_in_memory(sizes: list[int], count: int, dtype: torch.dtype) -> None:
    pieces, masters = cut(sizes, BLOCK), [torch.randn(size, dtype=dtype) for size in sizes]
    here, there = (kind.States(sizes, pieces, count, dtype, "") for kind in (host, files))
    for master in masters:
        here.add(master.clone())
        there.add(master)
    for turn in range(2):
        for (piece, ours), (other, theirs) in zip(here.stream(), there.stream(), strict=True):
            assert piece == other
            for row, (our, their) in enumerate(zip(ours, theirs, strict=True)):
                assert torch.equal(our, their)
                our.add_(row + turn + piece.start)
                their.add_(row + turn + piece.start)
    for unit in range(len(sizes)):
        assert torch.equal(here.master(unit), there.master(unit))


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_weights_are_the_last_ones_put_in_whatever_order_they_are_fetched(
    sizes: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    pieces = cut(sizes, BLOCK)
    weights = files.Weights(sizes, pieces, dtype, "")
    for turn in range(3):
        values = [torch.randn(size) for size in sizes]
        for piece in pieces:
            weights.put(piece, values[piece.unit][piece.place])
        weights.flush()
        for unit in data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=6), label=f"order {turn}"):
            into = torch.empty(sizes[unit], dtype=dtype)
            weights.fetch(unit, into)
            assert torch.equal(into, values[unit].to(dtype))


def test_the_next_units_weights_are_read_while_a_unit_is_used() -> None:
    sizes = [5, 6, 7]
    weights = files.Weights(sizes, cut(sizes, BLOCK), torch.float32, "")
    for order in ([0, 1, 2, 1, 0], [0, 1, 2, 1, 0]):
        coming = []
        weights.flush()
        for unit in order:
            weights.fetch(unit, torch.empty(sizes[unit]))
            coming.append(weights.coming and weights.coming[0])
    assert coming == [1, 2, 1, 0, None]


def test_reads_are_ahead_of_the_computation_and_writes_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    store, log = Store(4 * BLOCK), []
    read, write = store.read, store.write
    monkeypatch.setattr(
        store, "read", lambda offset, into: (log.append(f"read {offset // BLOCK}"), read(offset, into))[1]
    )
    monkeypatch.setattr(
        store, "write", lambda offset, data: (log.append(f"write {offset // BLOCK}"), write(offset, data))[1]
    )
    for index, _ in enumerate(store.stream([(i * BLOCK, 1) for i in range(4)], [aligned(1) for _ in range(RING)])):
        log.append(f"step {index}")
    assert log == [
        *("read 0", "read 1", "step 0", "write 0"),
        *("read 2", "step 1", "write 1"),
        *("read 3", "step 2", "write 2"),
        *("step 3", "write 3"),
    ]


def test_files_go_past_the_page_cache_where_the_file_system_lets_them() -> None:
    store = Store(BLOCK)
    direct = bool(fcntl.fcntl(store.file, fcntl.F_GETFL) & os.O_DIRECT)
    assert direct != bool(store.fallback)


def test_a_file_system_without_direct_access_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(file: object, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr("impls.parallelism.zero_offload.store.fcntl.fcntl", refuse)
    fallback = f"{tmp_path} does not support O_DIRECT: its files go through the page cache"
    assert Store(BLOCK, str(tmp_path)).fallback == fallback


def test_a_file_has_no_name_and_its_blocks_are_free_when_the_store_is_gone(tmp_path: Path) -> None:
    store = Store(BLOCK, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    descriptor = store.file.fileno()
    del store
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


KILLED = """
import os, sys, time
from impls.parallelism.zero_offload.store import Store, aligned
store = Store(1 << 24, sys.argv[1])
store.write(0, aligned(1 << 20)).result()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Store(BLOCK, str(tmp_path / "none"))
    assert f"cannot make a file in {tmp_path / 'none'} for offloaded states: No such file" in str(caught.value)


def test_a_file_that_ends_early_is_an_error_that_says_where(tmp_path: Path) -> None:
    for end in (BLOCK, BLOCK + 1000):
        store = Store(3 * BLOCK, str(tmp_path))
        os.ftruncate(store.file.fileno(), end)
        with pytest.raises(EOFError, match=f"ends at {end:,} of 12,288 bytes"):
            store.read(0, aligned(3 * BLOCK)).result()


def test_a_limit_on_file_sizes_is_one_clear_error(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, hard))
    try:
        with pytest.raises(OSError, match=r"cannot take 8,192 bytes in .*: File too large"):
            Store(2 * BLOCK, str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, which only the superuser can create."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", bytes(tmp_path), b"tmpfs", 0, b"size=64k"):
        pytest.skip(f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    yield tmp_path
    assert not libc.umount2(bytes(tmp_path), 2)


def test_a_full_disk_is_one_clear_error_before_training_begins(tmpfs: Path) -> None:
    with pytest.raises(OSError, match=r"cannot take 131,072 bytes in .* for offloaded states: No space left") as caught:
        Store(1 << 17, str(tmpfs))
    assert caught.value.errno == errno.ENOSPC
    assert Store(1 << 15, str(tmpfs)).size == 1 << 15  # a failed allocation has returned its space


def test_a_disk_that_fills_while_training_is_an_error_at_the_write(
    tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "_reserve", lambda store: os.ftruncate(store.file.fileno(), store.size))
    store = Store(1 << 17, str(tmpfs))
    with pytest.raises(OSError, match=r"pwritev of 131,072 bytes at 0 failed in .*: No space left"):
        store.write(0, aligned(1 << 17)).result()


def test_a_read_only_disk_is_one_clear_error(tmpfs: Path) -> None:
    readonly, remount = 1, 32
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.mount(b"none", bytes(tmpfs), b"tmpfs", readonly | remount, None)
    with pytest.raises(OSError, match=r"cannot make a file in .* for offloaded states: Read-only file system"):
        Store(BLOCK, str(tmpfs))


def test_a_stream_that_is_left_early_waits_for_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    store, moved = Store(4 * BLOCK), []
    transfer = store._transfer

    def slowly(*arguments: object) -> None:
        time.sleep(0.02)
        transfer(*arguments)
        moved.append(arguments)

    monkeypatch.setattr(store, "_transfer", slowly)
    stream = store.stream([(i * BLOCK, 1) for i in range(4)], [aligned(1) for _ in range(RING)])
    next(stream)
    stream.close()
    assert len(moved) == 2
