"""What engines compile once in an environment, for minutes: begun before the first case, in the background, and waited
for by the cases that need it."""

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

LIMIT = 1200.0  # seconds that a build may take
TOLD = 20.0  # seconds between two lines of one who waits


class _Build:
    """One module that compiles, run with ``python -m``: it prints what it does, and nothing if there is nothing to do.
    Whether that came to a good end is for the engine to find out in its rank."""

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
        """Whether it has ended, at the latest ``patience`` seconds from now; one that takes too long is."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
            self._reader.join(1.0)
            return True
        if time.monotonic() - self.began < LIMIT:
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """With every compiler that it has started; ninja gives each a process group of its own."""
        if self.process.poll() is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            builder = psutil.Process(self.process.pid)
            builder.suspend()  # or it would start others meanwhile
            for process in [builder, *builder.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
        self._reader.join(1.0)


class Builds:
    """Of a session. Several threads may wait."""

    def __init__(self) -> None:
        self.news: deque[str] = deque()  # lines that were not told yet
        self._builds: dict[str, _Build] = {}
        self._turn, self._closed = Lock(), False

    def begin(self, module: str) -> _Build | None:
        """Once a session; None when it is over."""
        with self._turn:
            if module not in self._builds and not self._closed:
                self._builds[module] = _Build(module, self.news)
            return self._builds.get(module)

    def wait(self, module: str, tell: Callable[[str], None] | None = None) -> None:
        """Until the module has nothing left to compile; ``tell`` is given its lines meanwhile, and a sign of life."""
        build, said = self.begin(module), time.monotonic()
        while build is not None and not build.ended(0.5):
            if tell and self.told(tell):
                said = time.monotonic()
            elif tell and time.monotonic() - said > TOLD:
                said = time.monotonic()
                tell(f"… {said - build.began:.0f} s so far; the next case waits for it")
        if tell:
            self.told(tell)

    def told(self, tell: Callable[[str], None]) -> bool:
        """Tells what is new; whether there was anything."""
        any_news = bool(self.news)
        while self.news:
            tell(self.news.popleft())
        return any_news

    def rest(self, tell: Callable[[str], None] | None = None) -> None:
        """Until nothing is compiled any more: what comes is timed."""
        for module in list(self._builds):
            self.wait(module, tell)

    def close(self) -> None:
        with self._turn:
            self._closed = True
            for build in self._builds.values():
                build.kill()
