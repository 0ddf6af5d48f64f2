"""Jobs that go wrong on purpose, for the tests of worlds."""

import os
import signal
import time

import torch
import torch.distributed as dist

from harness.launch.rank import Context


def total(context: Context) -> float:
    x = torch.tensor([float(context.rank + 1)])
    dist.all_reduce(x)
    return x.item()


def one_raises(context: Context) -> None:
    if context.rank == 1:
        raise ValueError("rank 1 is wrong")
    total(context)


def one_is_killed(context: Context) -> None:
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    total(context)


def one_never_enters(context: Context) -> None:
    if context.rank == 1:
        time.sleep(600)
    total(context)


def one_runs_out_of_memory(context: Context) -> None:
    if context.rank == 1:
        torch.empty(1 << 60, dtype=torch.uint8)
    total(context)


def leaves_a_child(context: Context) -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    return pid
