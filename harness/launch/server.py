"""The fork server: a process that has imported torch and one engine, and forks ranks that start warm.

Run as ``python -m harness.launch.server ADDRESS MODULE …``. Requests on the connection: ``(world, rank, environment)``
each forks one rank; replies: ``("forked", world, rank, pid)`` and, when a rank ends, ``("ended", pid, status)``.
"""

import contextlib
import ctypes
import importlib
import os
import select
import signal
import sys
import traceback
from multiprocessing.connection import Client, Connection
from typing import Any

from harness.meter import memory

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Linux sends this process SIGKILL when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(address: str, modules: list[str]) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    control = Client(address, "AF_UNIX")
    problems = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:  # reported to whoever asks for a rank: the case then raises the same import error itself
            problems[module] = traceback.format_exc()
    # Once, before there are ranks that would all do it; what goes wrong is recorded by the ranks' own meter.
    with contextlib.suppress(RuntimeError, OSError):
        memory.compile_allocator()
    control.send(("ready", problems))
    wake, wakened = os.pipe()
    os.set_blocking(wakened, False)
    signal.set_wakeup_fd(wakened)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap(control, children)
        if control in ready:
            try:
                request = control.recv()
            except (EOFError, ConnectionError):  # the parent is gone
                for pid in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                return
            _fork(control, children, [wake, wakened], *request)


def _reap(control: Connection, children: set[int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in children:
            children.discard(pid)
            control.send(("ended", pid, os.waitstatus_to_exitcode(status)))


def _fork(
    control: Connection, children: set[int], pipe: list[int], world: str, rank: int, environment: dict[str, str]
) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # the child does the same: whoever is first
            os.setpgid(pid, pid)
        children.add(pid)
        control.send(("forked", world, rank, pid))
        return
    code: Any = 1
    try:
        os.setpgid(0, 0)
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for descriptor in pipe:
            os.close(descriptor)
        os.environ.update(environment)
        from harness.launch.rank import serve

        code = serve()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)  # no atexit: engines' handlers wait for peers that are gone


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
