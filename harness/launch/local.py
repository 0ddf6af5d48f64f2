"""Worlds on this host. Ranks are forked from warm servers, one server for each library."""

import contextlib
import itertools
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.launch.base import Watch, local_cores
from harness.launch.elsewhere import Elsewhere
from harness.launch.outcome import Done, Failure, Hung, Job, Killed, Outcome, OutOfMemory, Raised, Unsupported
from harness.launch.placement import Cluster, Part
from harness.launch.sockets import accept, listen
from harness.launch.stacks import collective
from harness.meter.host import MachineWatch
from harness.spec.contract import COMMON
from harness.spec.gpus import visible
from harness.spec.variables import inherited

GRACE = 1.0  # seconds in which the other ranks may answer after the first failure
STACKS = 0.3  # seconds for a stuck rank to write its stacks
# Imported by every rank to run jobs, and to receive and write tensors. Every optimizer imports dynamo, which would cost
# each rank a second.
WARM = (
    "torch",
    "torch._dynamo",
    "torch.utils.serialization.config",
    "harness.launch.outcome",
    "harness.launch.checked",
    "harness.launch.plain",
    "harness.launch.timed",
    COMMON.data,
)
START = 120.0  # seconds for a server to import its engine
DEFAULTS: Mapping[str, str] = MappingProxyType({})

ServerKey = tuple[str, tuple[tuple[str, str], ...]]  # a library, and its server's environment variables


def _free_port(given: deque[int]) -> int:
    """A free port other than those given out recently, which may not be bound yet."""
    while True:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = int(probe.getsockname()[1])
        if port not in given:
            given.append(port)
            return port


def _oom_kills() -> int:
    """The number of processes of this control group that the kernel has killed because memory ran out."""
    with contextlib.suppress(OSError):
        for line in Path("/sys/fs/cgroup/memory.events").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


class _Server:
    """The parent's end of one fork server. RuntimeError if the server ends or hangs while it imports the modules."""

    def __init__(self, folder: Path, name: str, modules: Sequence[str], environment: dict[str, str]) -> None:
        address = folder / f"server-{name}"
        log = folder / f"server-{name}.log"
        with contextlib.closing(listen(address)) as listener, log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "harness.launch.server", str(address), *modules],
                env=inherited(os.environ) | environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            deadline = time.monotonic() + START
            while (control := accept(listener, 0.2)) is None:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    self.process.wait()
                    raise RuntimeError(
                        f"the fork server for {name} did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}"
                    )
        self.control = control
        self.ended: dict[int, int] = {}
        self.turn = threading.Lock()  # worlds in several threads use one server

    def fork(self, environments: Sequence[dict[str, str]]) -> list[int]:
        """The process ids of new ranks, one for each environment; fewer if the server has ended."""
        pids: list[int] = []
        with self.turn, contextlib.suppress(EOFError, OSError):
            for environment in environments:
                self.control.send(environment)
            while len(pids) < len(environments):
                message = self.control.recv()
                if message[0] == "ended":
                    self.ended[message[1]] = message[2]
                else:
                    self.ended.pop(message[1], None)  # of an earlier rank: process ids are reused
                    pids.append(message[1])
        return pids

    def exit_code(self, pid: int, patience: float) -> int | None:
        """A rank's exit code (negative: the signal that ended it). None if the rank still runs after ``patience``
        seconds, or if the server itself, and thus its ranks, have ended."""
        deadline = time.monotonic() + patience
        with self.turn, contextlib.suppress(EOFError, OSError):
            while pid not in self.ended and self.control.poll(max(0.0, deadline - time.monotonic())):
                _, ended, status = self.control.recv()
                self.ended[ended] = status
        return self.ended.get(pid)

    def close(self) -> None:
        with self.turn:
            with contextlib.suppress(OSError):
                self.control.send(None)
            self.control.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LocalWorld:
    """Ranks of one case on this host: all of them, or those of one part. ``elsewhere``: the other parts."""

    def __init__(
        self,
        server: _Server,
        folder: Path,
        part: Part,
        environment: dict[str, str],
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.size, self._ranks = part.size, part.ranks
        self._server, self._elsewhere = server, elsewhere
        self._scratch = Path(tempfile.mkdtemp(prefix="w", dir=folder))
        self._listener = listen(self._scratch / "parent")
        self._connections: dict[int, Connection] = {}
        self._joined: set[int] = set()
        self._closed = self._told = False
        shared = environment | part.environment()
        shared |= {"PLUMBLINE_PARENT": str(self._scratch / "parent"), "PLUMBLINE_SCRATCH": str(self._scratch)}
        places = enumerate(self._ranks)
        pids = server.fork([shared | {"RANK": str(rank), "LOCAL_RANK": str(place)} for place, rank in places])
        self._pids = dict(zip(self._ranks, pids, strict=False))  # fewer if the server has ended

    def run(self, job: Job, timeout: float) -> tuple[Outcome, ...]:
        if self._closed:
            return tuple(Killed(rank, 0.0, "the world was closed before this job") for rank in self._ranks)
        start = time.monotonic()
        outcomes: dict[int, Outcome] = {}
        kills = _oom_kills()
        deadline = start + timeout
        while len(self._connections) < len(self._ranks) and time.monotonic() < deadline and not self._lost_a_newcomer():
            connection = accept(self._listener, min(0.2, deadline - time.monotonic()))
            if connection is not None:
                self._greet(connection, job)
        if self._joined:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.send(job)
        for rank in self._ranks:
            if rank not in self._connections:
                outcomes[rank] = Killed(rank, time.monotonic() - start, f"the rank never started\n{self._log(rank)}")
        while pending := [rank for rank in self._connections if rank not in outcomes]:
            waited = [*(self._connections[rank] for rank in pending), *self._others()]
            if self._failed(outcomes.values()):
                deadline = min(deadline, time.monotonic() + GRACE)
            ready = wait(waited, max(0.0, deadline - time.monotonic()))
            for rank in pending:
                if self._connections[rank] in ready:
                    outcome = self._receive(rank, time.monotonic() - start, kills)
                    if outcome is not None:
                        outcomes[rank] = outcome
            if not ready and time.monotonic() >= deadline:
                outcomes |= self._stacks(pending, time.monotonic() - start)
        if self._failed(outcomes.values()):
            self.close()
        return tuple(outcomes[rank] for rank in self._ranks)

    def _failed(self, outcomes: Collection[Outcome]) -> bool:
        """Whether a rank has failed, here or elsewhere. The other parts are told of the first one here."""
        here = any(isinstance(outcome, Failure) for outcome in outcomes)
        if self._elsewhere is None:
            return here
        if here and not self._told:
            self._told = True
            self._elsewhere.tell()
        return here or self._elsewhere.failed

    def _others(self) -> list[Connection]:
        """Where the other parts tell of a failure, as long as none has."""
        return [self._elsewhere.ready] if self._elsewhere and not self._elsewhere.failed else []

    def _greet(self, connection: Connection, job: Job) -> None:
        """Identifies a rank and sends its first job. If the rank has died meanwhile, its exit status shows that
        later."""
        with contextlib.suppress(EOFError, OSError):
            rank = connection.recv()
            self._connections[rank] = connection
            connection.send(job)

    def _lost_a_newcomer(self) -> bool:
        """Whether a rank has ended (alone or with its server) or was never forked, before it identified itself."""
        if len(self._pids) < len(self._ranks) or self._server.process.poll() is not None:
            return True
        missing = [pid for rank, pid in self._pids.items() if rank not in self._connections]
        return any(self._server.exit_code(pid, patience=0.0) is not None for pid in missing)

    def _receive(self, rank: int, at: float, kills: int) -> Outcome | None:
        try:
            kind, value = self._connections[rank].recv()
        except (EOFError, OSError):
            code = self._server.exit_code(self._pids[rank], patience=0.5)
            if code == -signal.SIGKILL and _oom_kills() > kills:
                return OutOfMemory(rank, at, f"killed by the kernel: out of memory\n{self._log(rank)}")
            if code is None:
                how = "hung up" if self._server.process.poll() is None else "ended with its fork server"
            else:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            return Killed(rank, at, f"{how}\n{self._log(rank)}")
        except (pickle.UnpicklingError, AttributeError, ImportError) as error:
            return Raised(rank, at, f"what the job returned cannot be read outside the rank: {error!r}")
        if kind == "joined":
            self._joined.add(rank)
            return None
        if kind == "done":
            return Done(rank, value)
        if kind == "unsupported":
            return Unsupported(rank, value)
        text, memory, echo = value
        text += self._printed(rank)
        return OutOfMemory(rank, at, text) if memory else Raised(rank, at, text, echo)

    def _stacks(self, ranks: Sequence[int], at: float) -> dict[int, Outcome]:
        """The stacks of the ranks that did not answer; the ranks are killed afterwards."""
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[rank], signal.SIGUSR1)
        time.sleep(STACKS)
        outcomes: dict[int, Outcome] = {}
        for rank in ranks:
            stack = (self._scratch / f"rank{rank}.stack").read_text(
                "utf-8", "replace"
            ) or "no stack: the rank does not respond to signals"
            place = collective(stack)
            where = f"it is waiting in {place}" if place else "it is in no collective of torch.distributed"
            outcomes[rank] = Hung(rank, at, f"did not answer; {where}\n{stack}{self._printed(rank)}", echo=bool(place))
        return outcomes

    def _printed(self, rank: int) -> str:
        log = self._log(rank).strip()
        return f"\nthe end of its output:\n{log}\n" if log else ""

    def _log(self, rank: int) -> str:
        with contextlib.suppress(OSError):
            return (self._scratch / f"rank{rank}.log").read_text("utf-8", "replace")[-2000:]
        return ""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for connection in self._connections.values():
            connection.close()  # a healthy rank ends when its parent closes the connection
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in self._pids.values():
            self._server.exit_code(pid, patience=2.0)
        self._listener.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


class LocalLauncher:
    """``gpus``: number of GPUs, the first ones that PyTorch sees; 0: gloo ranks on the CPU with one thread each, so
    that figures of different world sizes can be compared. ``adapters``: the modules of each library that its server
    imports before it forks.

    Several threads may ask for worlds. A server ends with the thread that asked for its first world.
    """

    def __init__(self, gpus: int = 0, adapters: Mapping[str, Sequence[str]] | None = None) -> None:
        self.gpus, self._adapters = gpus, adapters or {}
        self.device, self.cores = "cuda" if gpus else "cpu", local_cores()
        self._folder = Path(tempfile.mkdtemp(prefix="plumbline-"))
        self._servers: dict[ServerKey, _Server] = {}
        self._starting: dict[ServerKey, threading.Lock] = {}
        self._started, self._closed = itertools.count(1), False
        self._ports: deque[int] = deque(maxlen=64)
        self._turn = threading.Lock()  # several threads may ask for worlds

    def watch(self) -> Watch:
        return MachineWatch(self.device)

    def world(self, size: int, library: str, module: str, settings: Mapping[str, str] = DEFAULTS) -> LocalWorld:
        return self.part(Part((size,), port=self.port()), library, module, settings)

    def port(self) -> int:
        """A free port of this machine."""
        with self._turn:
            return _free_port(self._ports)

    def counts(self, size: int) -> tuple[int, ...]:
        return (size,)

    def shortage(self, size: int) -> str:
        return ""

    def part(
        self,
        part: Part,
        library: str,
        module: str,
        settings: Mapping[str, str] = DEFAULTS,
        elsewhere: Elsewhere | None = None,
    ) -> LocalWorld:
        """The ranks of a world that are on this machine."""
        shown = {"CUDA_VISIBLE_DEVICES": visible(self.gpus, os.environ), "PLUMBLINE_GPUS": str(self.gpus)}
        environment = {**settings, **shown}
        key = library, tuple(sorted(settings.items()))
        with self._turn:
            if self._closed:
                raise RuntimeError("the launcher is closed")
            starting = self._starting.setdefault(key, threading.Lock())
        with starting:  # other threads continue during the import, which takes seconds
            server = self._servers.get(key)
            if server is None or server.process.poll() is not None:
                server = self._server(library, module, environment)
                self._keep(key, server)
        return LocalWorld(server, self._folder, part, environment, elsewhere)

    def _keep(self, key: ServerKey, server: _Server) -> None:
        with self._turn:
            if not self._closed:
                self._servers[key] = server
                return
        server.close()
        raise RuntimeError("the launcher was closed meanwhile")

    def _server(self, library: str, module: str, environment: dict[str, str]) -> _Server:
        name = f"{library}-{next(self._started)}"
        all_of_them = tuple(dict.fromkeys((*WARM, module, *self._adapters.get(library, ()))))
        for modules in dict.fromkeys((all_of_them, (*WARM, module))):
            with contextlib.suppress(RuntimeError):
                return _Server(self._folder, f"{name}-{len(modules)}", modules, environment)
        # The engine's import raises, exits, crashes or hangs. A bare server's ranks repeat it and report the error.
        return _Server(self._folder, f"{name}-bare", [], environment)

    def close(self) -> None:
        with self._turn:
            self._closed = True
            starting = list(self._starting.values())
        for start in starting:
            with start:  # the thread that starts a server needs the folder, and closes the server when it exists
                pass
        with self._turn:
            for server in self._servers.values():
                server.close()
            self._servers.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "LocalLauncher":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def launch(gpus: int, adapters: Mapping[str, Sequence[str]], cluster: Cluster) -> LocalLauncher:
    return LocalLauncher(gpus, adapters)
