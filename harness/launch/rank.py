"""The loop inside a rank: joins the process group, then runs jobs until the parent hangs up."""

import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.launch.sockets import connect
from harness.spec import Unsupported
from harness.spec.files import InputError

OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")
LOST_PEER = ("connection reset by peer", "connection closed by peer", "connection refused", "broken pipe")


@dataclass
class Context:
    """The facts a job may use about its rank. ``state`` lives as long as the world; ``counts``: the number of ranks on
    each of its nodes, in blocks of neighbours."""

    rank: int
    size: int
    scratch: Path
    state: dict[str, Any] = field(default_factory=dict)
    counts: tuple[int, ...] = ()


def serve() -> int:
    """Runs in the forked child; the parent's settings are in the environment."""
    environment = os.environ
    counts = tuple(map(int, environment["PLUMBLINE_COUNTS"].split(",")))
    context = Context(int(environment["RANK"]), sum(counts), Path(environment["PLUMBLINE_SCRATCH"]), counts=counts)
    _redirect_output(context.scratch / f"rank{context.rank}.log")
    with (context.scratch / f"rank{context.rank}.stack").open("w") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
        connection = connect(Path(environment["PLUMBLINE_PARENT"]))
        connection.send(context.rank)
        try:
            join(context)
        except BaseException as error:
            connection.send(_failed(error))
            return 1
        connection.send(("joined", None))
        while True:
            try:
                job = connection.recv()
            except (EOFError, ConnectionError):
                return 0
            try:
                module, _, name = job.target.partition(":")
                value = getattr(importlib.import_module(module), name)(context, **job.arguments)
                connection.send(("done", value))
            except Unsupported as reason:
                connection.send(("unsupported", str(reason)))
            except BaseException as error:
                sys.stdout.flush()  # the parent reads the printed text
                connection.send(_failed(error))


def _failed(error: BaseException) -> tuple[str, Any]:
    known = isinstance(error, InputError | WrongDevice)  # the message says everything
    text = str(error) if known else "".join(traceback.format_exception(error))
    message = str(error).lower()
    memory = isinstance(error, MemoryError) or any(sign in message for sign in OUT_OF_MEMORY)
    echo = any(sign in message for sign in LOST_PEER)
    return "raised", (text, memory, echo)


def _redirect_output(path: Path) -> None:
    """Writes a rank's prints to its own file; the end of the file is shown when the rank dies."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def join(context: Context) -> None:
    """Installs the memory meter, picks the device and opens the default process group."""
    from harness.meter import memory

    memory.install()
    import torch
    import torch.distributed as dist

    _require_gpus(int(os.environ["PLUMBLINE_GPUS"]))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    backend = "gloo"
    if torch.cuda.is_available():
        place = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
        torch.cuda.set_device(place)
        os.environ["LOCAL_RANK"] = str(place)  # engines choose their device by these
        if max(context.counts) > torch.cuda.device_count():
            from harness.launch import staged

            context.state["staged"] = staged.install()
        else:
            backend = "cpu:gloo,cuda:nccl"
    store: Any
    if len(context.counts) > 1:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["PLUMBLINE_STORE"])
        first = context.rank == 0
        store = dist.TCPStore(address, port, context.size, is_master=first)  # type: ignore[attr-defined]
    else:  # a file:// URL does not accept every path
        store = dist.FileStore(str(context.scratch / "rendezvous"), context.size)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=context.rank, world_size=context.size)


class WrongDevice(RuntimeError):
    """The rank sees fewer or more GPUs than its run records."""


def _require_gpus(expected: int) -> None:
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen != expected:
        raise WrongDevice(f"this run has {expected} GPUs, but PyTorch {torch.__version__} sees {seen} in its ranks")


# Jobs without an engine, for tests and `plumbline doctor`.


def echo(context: Context, value: Any = None) -> dict[str, Any]:
    """Returns this rank's place in its world."""
    return {"rank": context.rank, "size": context.size, "pid": os.getpid(), "time": time.time(), "value": value}
