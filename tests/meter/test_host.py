"""A busy foreign process is detected; a busy process of ours is ignored."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from harness.meter import host
from harness.meter.host import FOREIGN, CpuWatch, _ours

SPIN = "while True: pass"
# The middle process ends at once, so that init adopts the busy one.
ORPHAN = f"""
import subprocess, sys
quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
print(subprocess.Popen([sys.executable, "-c", "{SPIN}"], start_new_session=True, **quiet).pid)
"""
SECONDS = 1.0


@contextlib.contextmanager
def foreigner() -> Iterator[psutil.Process]:
    found = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=True)
    process = psutil.Process(int(found.stdout))
    try:
        yield process
    finally:
        os.kill(process.pid, signal.SIGKILL)


def seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def machine() -> float:
    """Processor seconds of all processes."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait)


def test_a_foreign_busy_process_is_seen() -> None:
    with foreigner() as process:
        assert process.pid not in {child.pid for child in psutil.Process().children(recursive=True)}
        watch, before, start = CpuWatch(), seconds(process), time.monotonic()
        while seconds(process) - before < 0.5:  # it gets its half second even on a busy machine
            assert time.monotonic() < start + 30.0
            time.sleep(0.05)
        share = (seconds(process) - before) / (time.monotonic() - start)
        assert watch.foreign() >= 0.8 * share
        assert share > FOREIGN


def test_our_own_work_and_that_of_our_children_is_not_foreign() -> None:
    """Subtracts this child's own time from the machine's total."""
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        process, watch = psutil.Process(child.pid), CpuWatch()
        before, busy, start = seconds(process), machine(), time.monotonic()
        time.sleep(SECONDS)
        ours, everybodys, elapsed = seconds(process) - before, machine() - busy, time.monotonic() - start
        assert ours / elapsed > FOREIGN
        assert watch.foreign() <= (everybodys - 0.6 * ours) / elapsed
    finally:
        child.kill()
        child.wait()


def test_the_kernels_threads_are_no_foreigners(monkeypatch: pytest.MonkeyPatch) -> None:
    with foreigner():
        watch = CpuWatch()
        monkeypatch.setattr(host, "_kernel", lambda: 1e6)
        time.sleep(0.2)
        assert watch.foreign() == 0.0


def test_the_kernels_threads_are_found_where_there_are_any() -> None:
    seen = psutil.pid_exists(2) and psutil.Process(2).name() == "kthreadd"
    assert (host._kernel() > 0.0) == seen


def test_time_of_our_processes_stays_ours_after_they_have_ended() -> None:
    work = "import time\nwhile time.process_time() < 0.5: pass"
    before = _ours()
    subprocess.run([sys.executable, "-c", work], check=True)
    assert _ours() - before >= 0.5
