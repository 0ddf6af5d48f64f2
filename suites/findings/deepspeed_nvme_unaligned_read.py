"""DeepSpeed's async_io reads nothing into a buffer at an unaligned address, and reports success.

ZeRO-3 with states on NVMe reads gradients into one pinned buffer, each at its own offset. Files are opened with
O_DIRECT, for which many kernels and disks refuse addresses that are not multiples of 512: async_io waits for the
completion of each read, but never looks at its result. The optimizer then steps on the old content of the buffer.
"""

import logging
import mmap
import os
import sys
import tempfile

os.environ["DS_ACCELERATOR"] = "cpu"
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

logging.disable(logging.WARNING)
SIZE = 1 << 18  # elements: 1 MiB
UNALIGNED, ALIGNED = 32, 128  # elements: 128 and 512 bytes


def refused(path: str) -> bool:
    """Whether the kernel and the disk refuse a direct read to such an address."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        memory = memoryview(mmap.mmap(-1, 4 * SIZE + mmap.PAGESIZE))
        os.preadv(file, [memory[4 * UNALIGNED : 4 * (UNALIGNED + SIZE)]], 0)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


if not AsyncIOBuilder().is_compatible(verbose=False):
    print("cannot be judged: async_io needs a C++ compiler and libaio-dev")
    sys.exit(2)
handle = AsyncIOBuilder().load(verbose=False).aio_handle()  # compiled for a minute the first time
buffer = handle.new_cpu_locked_tensor(SIZE + ALIGNED, torch.empty(0))
means = {}
with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/gradient"
    torch.ones(SIZE).numpy().tofile(path)
    if not refused(path):
        raise RuntimeError("here a direct read to any address is allowed")
    for offset in (ALIGNED, UNALIGNED):
        buffer.zero_()
        part = buffer.narrow(0, offset, SIZE)
        handle.async_pread(part, path, 0)
        if handle.wait() != 1:
            raise RuntimeError("wait() does not say that one read was completed")
        means[offset] = part.mean().item()
if means[ALIGNED] != 1:
    raise RuntimeError(f"the mean of what is read to an aligned address is {means[ALIGNED]} instead of 1")
print(f"expected a mean of {means[ALIGNED]} of what is read from a file of ones, as at an offset of 512 B")
print(f"found    a mean of {means[UNALIGNED]} at an offset of 128 B; wait() says that one read was completed")
wrong = means[UNALIGNED] != 1
print("still there" if wrong else "gone")
sys.exit(wrong)
