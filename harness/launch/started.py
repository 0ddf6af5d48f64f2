"""Processes of this machine that start agents on nodes: ssh, srun."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.launch.wire import KEY

HERE = str(Path(__file__).parents[2])  # of the project, in a checkout or installed
PATIENCE = 5.0  # seconds for the processes to end by themselves
SHOWN = 600  # characters of the end of an output


def agent(address: str, port: int, name: str = "") -> list[str]:
    """The module of the agent and its arguments, for ``python -m``."""
    return ["harness.launch.agent", address, str(port), *([name] if name else [])]


def variables(key: bytes) -> dict[str, str]:
    """What an agent needs besides its machine's environment: the same code as here, and the key."""
    path = [HERE, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), KEY: key.hex()}


def script(command: Sequence[str], more: dict[str, str]) -> str:
    """Shell lines that run a command in this folder. Read from standard input, they show no key in a list of processes,
    and need no quotes for ssh."""
    lines = [f"cd {shlex.quote(os.getcwd())}", *(f"export {name}={shlex.quote(text)}" for name, text in more.items())]
    return "\n".join([*lines, f"exec {shlex.join(command)} </dev/null", ""])


class Processes:
    """Started processes, with the ends of their outputs."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="plumbline-agents-"))
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, command: Sequence[str], more: dict[str, str] | None = None, text: str = "") -> None:
        """Runs a command with further variables and a standard input."""
        with (self._folder / name).open("w") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **(more or {})},
                stdin=subprocess.PIPE if text else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the session's
            )
        self._running.append((name, process))
        if process.stdin:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(text.encode())

    def ended(self) -> list[str]:
        """The names of those that have ended."""
        return [name for name, process in self._running if process.poll() is not None]

    def output(self, name: str) -> str:
        """The end of its output, in one line."""
        text = (self._folder / name).read_text("utf-8", "replace")
        return " / ".join(line.strip() for line in text.splitlines() if line.strip())[-SHOWN:] or "no output"

    def stop(self) -> None:
        for _, process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        for end in (signal.SIGTERM, signal.SIGKILL):
            for _, process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    if process.poll() is None:
                        os.killpg(process.pid, end)
            for _, process in self._running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
        shutil.rmtree(self._folder, ignore_errors=True)
