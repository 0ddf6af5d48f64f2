"""A real Slurm of several nodes on this machine: munged, slurmctld and a slurmd for each node, without systemd.

``python -m tests.launch.slurm_here`` keeps one up until it is interrupted.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")
UP = 60.0  # seconds for the nodes to be idle
CONFIGURATION = """
ClusterName=plumbline
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CryptoType=crypto/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
"""


class SlurmHere:
    """``conf``: the value of SLURM_CONF for its clients; ``nodes``: the slurmd of each node."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.conf, self._folder = folder / "slurm.conf", folder
        folder.chmod(0o755)
        (folder / "state").mkdir()
        names = [f"n{place}" for place in range(1, count + 1)]
        ports = _ports(count + 1)
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(host=host, folder=folder, port=ports[0])
        for name, port in zip(names, ports[1:], strict=True):
            (folder / f"spool.{name}").mkdir()
            cores = len(psutil.Process().cpu_affinity() or ())
            text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} State=UNKNOWN\n"
        self.conf.write_text(text + "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._running: list[subprocess.Popen[bytes]] = []
        places = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        munge = [f"--{option}={folder / name}" for option, name in places.items()]
        self._start("munged", "--foreground", "--force", *munge)
        self._start("slurmctld", "-D", "-f", str(self.conf))
        self.nodes = {name: self._start("slurmd", "-D", "-f", str(self.conf), "-N", name) for name in names}
        self._wait(count)

    def _start(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{len(self._running)}-{command[0]}.log").open("w") as log:
            self._running.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.environment))
        return self._running[-1]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def _wait(self, count: int) -> None:
        deadline = time.monotonic() + UP
        while True:
            asked = ["sinfo", "--noheader", "--Node", "--format=%T"]
            found = subprocess.run(asked, capture_output=True, text=True, env=self.environment).stdout
            if found.split() == ["idle"] * count:
                return
            if time.monotonic() > deadline:
                logs = [path.read_text()[-500:] for path in sorted(self._folder.glob("*.log"))]
                self.close()
                raise RuntimeError("\n".join([f"the nodes are {found}", *logs]))
            time.sleep(0.2)

    def close(self) -> None:
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def absent() -> str:
    """The reason why this machine cannot have one; empty if it can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


@contextlib.contextmanager
def running(count: int = 2) -> Iterator[SlurmHere]:
    with tempfile.TemporaryDirectory(prefix="plumbline-slurm-") as folder:
        slurm = SlurmHere(Path(folder), count)
        try:
            yield slurm
        finally:
            slurm.close()


def _ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


if __name__ == "__main__":
    with running() as here:
        print(f"export SLURM_CONF={here.conf}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.read()
