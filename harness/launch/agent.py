"""The agent of a node: one process a session, which has ranks of many worlds forked by this node's fork servers.

Run as ``python -m harness.launch.agent ADDRESS PORT [NAME]`` with the session's key in a variable; it calls the session
and serves its requests: messages ``(number, method, arguments)``, answered in any order by ``(number, result, error)``.
``(None, world, "")`` says that a rank of a world has failed. It ends with the session, or when its connection is lost.
"""

import contextlib
import os
import platform
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

from harness.launch import wire
from harness.launch.base import Watch, local_cores
from harness.launch.elsewhere import Elsewhere
from harness.launch.local import LocalLauncher, LocalWorld
from harness.launch.outcome import Job, Outcome
from harness.launch.placement import Part
from harness.spec import gpus
from harness.spec.command import on_parents_death

CLOSING = 5.0  # seconds
AT_ONCE = 256  # requests; a thread that has started a fork server must not end


class Agent:
    """The methods without an underscore are the requests that it serves."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._launcher = LocalLauncher()
        self._worlds: dict[int, tuple[LocalWorld, Elsewhere]] = {}
        self._watches: dict[int, Watch] = {}

    def _serve(self) -> None:
        """Until the session closes the connection, or ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, method, arguments = self._connection.recv()
                self._pool.submit(self._answer, number, getattr(self, method), arguments)
        self.stop(1)  # or torchrun would wait for the session's other nodes

    def _answer(self, number: int, method: Any, arguments: Sequence[Any]) -> None:
        try:
            result, error = method(*arguments), ""
        except Exception:
            result, error = None, traceback.format_exc()
        self._send((number, result, error))

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending, contextlib.suppress(OSError):  # a session that is gone needs no answer
            self._connection.send(message)

    def prepare(self, count: int, adapters: Mapping[str, Sequence[str]]) -> int:
        """Sets the GPUs and modules of the worlds. Returns the number of GPUs of this node, if any are needed."""
        self._launcher.close()
        self._launcher = LocalLauncher(count, adapters)
        return len(gpus.gpus()) if count else 0

    def ports(self, count: int) -> list[int]:
        return [self._launcher.port() for _ in range(count)]

    def open(self, world: int, part: Part, library: str, module: str, settings: Mapping[str, str]) -> None:
        elsewhere = Elsewhere(partial(self._send, (None, world, "")))
        self._worlds[world] = self._launcher.part(part, library, module, settings, elsewhere), elsewhere

    def run(self, world: int, job: Job, timeout: float) -> tuple[Outcome, ...]:
        return self._worlds[world][0].run(job, timeout)

    def fail(self, world: int) -> None:
        """A rank of this world has failed on another node."""
        if world in self._worlds:
            self._worlds[world][1].fail()

    def shut(self, world: int) -> None:
        """Ends a world's ranks here."""
        if world in self._worlds:
            ranks, elsewhere = self._worlds.pop(world)
            ranks.close()
            elsewhere.close()

    def watch(self, number: int) -> None:
        self._watches[number] = self._launcher.watch()

    def disturbance(self, number: int) -> str:
        return self._watches[number].disturbance()

    def stop(self, status: int) -> None:
        """Ends this process: the launcher that started it sees the status. Fork servers that are busy end by
        themselves."""
        closing = threading.Thread(target=self._launcher.close, daemon=True)
        closing.start()
        closing.join(CLOSING)
        os._exit(status)  # other threads may wait for ranks


def main(address: str, port: str, name: str = "") -> None:
    on_parents_death(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the session handles Ctrl-C
    key = bytes.fromhex(os.environ.pop(wire.KEY))  # ranks do not inherit it
    connection = wire.dial(address, int(port), key)
    own = wire.own_address(connection)
    connection.send(
        {
            "name": name or os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "address": own,
            "interface": os.environ.get("GLOO_SOCKET_IFNAME") or wire.interface(own),
            "cores": local_cores(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "torch": version("torch"),
        }
    )
    Agent(connection)._serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
