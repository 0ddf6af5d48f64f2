"""Jobs that fail on purpose, for the tests of worlds."""

import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import types

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from harness.launch.rank import Context
from harness.spec import Unsupported
from harness.spec.files import InputError


def total(context: Context) -> float:
    """1 + 2 + … + the number of ranks, by a collective."""
    x = torch.tensor([float(context.rank + 1)])
    dist.all_reduce(x)
    return x.item()


def one_raises(context: Context) -> None:
    if context.rank == 1:
        raise ValueError("rank 1 is wrong")
    total(context)


def one_raises_and_the_other_sleeps(context: Context) -> None:
    if context.rank == 1:
        raise ValueError("rank 1 is wrong")
    time.sleep(600)


def prints_and_raises(context: Context) -> None:
    print(f"rank {context.rank} is about to fail")
    raise ValueError("it failed")


def prints_and_hangs(context: Context) -> None:
    print("waiting for nobody", flush=True)
    time.sleep(60)


def is_given_a_wrong_file(context: Context) -> None:
    raise InputError("text.jsonl, line 3 is not JSON")


def one_is_killed(context: Context) -> None:
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    total(context)


def one_exits(context: Context) -> None:
    if context.rank == 1:
        print("rank 1 has had enough", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)
    total(context)


def one_never_enters(context: Context) -> None:
    if context.rank == 1:
        time.sleep(600)
    total(context)


def one_never_starts_what_the_other_waits_for(context: Context) -> None:
    if context.rank == 1:
        time.sleep(600)
    work = dist.all_reduce(torch.ones(1), async_op=True)
    end = [lambda: work.wait()]
    end[0]()


def one_never_enters_the_backward_pass(context: Context) -> None:
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    loss = model(torch.ones(2)).sum()
    if context.rank == 1:
        time.sleep(600)
    loss.backward()


def one_is_stopped(context: Context) -> None:
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    total(context)


def one_runs_out_of_memory(context: Context) -> None:
    if context.rank == 1:
        torch.empty(1 << 60, dtype=torch.uint8)
    total(context)


def is_unsupported(context: Context) -> None:
    raise Unsupported("this engine has no such stage")


def returns_what_cannot_be_sent(context: Context) -> object:
    return lambda: None


def returns_what_only_it_knows(context: Context) -> object:
    module = sys.modules["only_here"] = types.ModuleType("only_here")
    module.Thing = type("Thing", (), {"__module__": "only_here"})
    return module.Thing()


def leaves_a_child(context: Context) -> int:
    """The process id of a child that would sleep for ten minutes."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def leaves_a_child_and_dies(context: Context) -> None:
    pid = leaves_a_child(context)
    print(f"child {pid}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def remembers(context: Context) -> int:
    """The number of calls in this world."""
    context.state["asked"] = context.state.get("asked", 0) + 1
    return int(context.state["asked"])


def pid(context: Context) -> int:
    return os.getpid()


def imports(context: Context, imported: str) -> None:
    """The first work of a case's job."""
    importlib.import_module(imported)


def has(context: Context, imported: str) -> bool:
    return imported in sys.modules


def imported(context: Context) -> bool:
    """Whether the requirements of checked and timed runs were imported before this module, the server's last import."""
    before = list(sys.modules)[: list(sys.modules).index(__name__)]
    ours = {"harness.launch.outcome", "harness.launch.checked", "harness.launch.timed", "impls.common.data"}
    return ours | {"torch.utils.serialization.config"} <= set(before)


def frozen(context: Context) -> int:
    """The number of objects that this rank's garbage collections skip."""
    return gc.get_freeze_count()


def place(context: Context) -> dict[str, object]:
    """Where this rank is, as an engine sees it."""
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "GLOO_SOCKET_IFNAME", "SLURM_PROCID")
    return {"counts": context.counts, "parent": os.getppid(), **{name: os.environ.get(name) for name in names}}
