"""The fork server: a process that has imported torch and one engine, and forks ranks that start warm.

Run as ``python -m harness.launch.server ADDRESS MODULE …``; it connects when the modules are imported, and ends with a
traceback if an import fails. Requests on the connection: an environment, which forks one rank; or None, which ends the
server. Replies: ``("forked", pid)`` and, when a rank ends, ``("ended", pid, status)``. When the parent is gone, all
ranks are killed and its scratch folder is removed.
"""

import contextlib
import gc
import importlib
import os
import select
import shutil
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.launch.parent import on_parents_death
from harness.launch.sockets import connect
from harness.meter import memory


def main(address: str, modules: list[str]) -> None:
    on_parents_death(signal.SIGKILL)  # an import may block any weaker signal
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    for module in modules:
        importlib.import_module(module)
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        raise RuntimeError(f"importing {', '.join(modules)} initialises CUDA, which does not survive a fork")
    gc.freeze()  # garbage collections in ranks then skip, and do not copy, the imported objects: 0.14 s each
    # Compiled once here, before all ranks would do it. The ranks' own meter records an error.
    with contextlib.suppress(RuntimeError, OSError):
        memory.compile_allocator()
    wake, wakened = os.pipe()
    os.set_blocking(wakened, False)
    signal.set_wakeup_fd(wakened)
    for signum in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(signum, lambda *_: None)  # the pipe reports ended children
    on_parents_death(signal.SIGTERM)
    children: set[int] = set()
    orphan = _serve(connect(Path(address)), [wake, wakened], children, parent)
    for pid in children:  # includes all processes they have started: each rank leads a process group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    if orphan:
        shutil.rmtree(os.path.dirname(address), ignore_errors=True)


def _serve(control: Connection, pipe: list[int], children: set[int], parent: int) -> bool:
    """Forks ranks until the parent closes the server (False) or dies (True)."""
    watched: list[Connection | int] = [control, pipe[0]]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if pipe[0] in ready:
            arrived = os.read(pipe[0], 4096)
            _reap(control, children)
            if signal.SIGTERM in arrived:
                return os.getppid() != parent
        if control in ready:
            try:
                environment = control.recv()
            except (EOFError, ConnectionError):
                return True
            if environment is None:
                return False
            _fork(control, children, pipe, environment)


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
            _tell(control, ("ended", pid, os.waitstatus_to_exitcode(status)))


def _tell(control: Connection, message: tuple[Any, ...]) -> None:
    with contextlib.suppress(OSError):  # the next receive detects a dead parent
        control.send(message)


def _fork(control: Connection, children: set[int], pipe: list[int], environment: dict[str, str]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # parent and child both do this, since either may run first
            os.setpgid(pid, pid)
        children.add(pid)
        _tell(control, ("forked", pid))
        return
    code: Any = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        on_parents_death(signal.SIGKILL)
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
        os._exit(code if isinstance(code, int) else 1)  # no atexit: engines' handlers would wait for dead peers


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
