"""Modules that engines compile once per environment, which takes minutes: compilation starts in the background before
the first case, and the cases that need a module wait for it."""

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread

import psutil

from harness.spec.variables import inherited

LIMIT = 1200.0  # time limit of a build in seconds
TOLD = 20.0  # seconds between two lines during a wait


class _Build:
    """One module that compiles, run with ``python -m``: it prints its progress, or nothing if it has nothing to do. The
    engine finds out in its rank whether the build succeeded."""

    def __init__(self, module: str, news: deque[str]) -> None:
        self.module, self.began = module, time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=inherited(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, args=(news,), daemon=True)
        self._reader.start()

    def _read(self, news: deque[str]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            news.extend(line.rstrip() for line in lines)

    def ended(self, patience: float) -> bool:
        """Whether the build has ended, within ``patience`` seconds; a build past its time limit is ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
            self._reader.join(1.0)
            return True
        if time.monotonic() - self.began < LIMIT:
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """Kills it with every compiler it has started; ninja gives each compiler its own process group."""
        if self.process.poll() is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            builder = psutil.Process(self.process.pid)
            builder.suspend()  # otherwise it would start others meanwhile
            for process in [builder, *builder.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
        self._reader.join(1.0)


class Builds:
    """The builds of a session. Several threads may wait for one."""

    def __init__(self) -> None:
        self.news: deque[str] = deque()  # lines not reported yet
        self._builds: dict[str, _Build] = {}
        self._turn, self._closed = Lock(), False

    def begin(self, module: str) -> _Build | None:
        """Starts the build once per session; None when it is over."""
        with self._turn:
            if module not in self._builds and not self._closed:
                self._builds[module] = _Build(module, self.news)
            return self._builds.get(module)

    def wait(self, module: str, tell: Callable[[str], None] | None = None) -> None:
        """Waits until the module is compiled. Meanwhile ``tell`` gets its lines, and a line that shows progress."""
        build, said = self.begin(module), time.monotonic()
        while build is not None and not build.ended(0.5):
            if tell and self.told(tell):
                said = time.monotonic()
            elif tell and time.monotonic() - said > TOLD:
                said = time.monotonic()
                tell(f"… {said - build.began:.0f} s so far; the next case is waiting")
        if tell:
            self.told(tell)

    def told(self, tell: Callable[[str], None]) -> bool:
        """Reports new lines; returns whether there were any."""
        any_news = bool(self.news)
        while self.news:
            tell(self.news.popleft())
        return any_news

    def rest(self, tell: Callable[[str], None] | None = None) -> None:
        """Waits until nothing is compiled any more, since timing follows."""
        for module in list(self._builds):
            self.wait(module, tell)

    def close(self) -> None:
        with self._turn:
            self._closed = True
            for build in self._builds.values():
                build.kill()
