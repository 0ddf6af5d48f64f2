"""Whether other work used the machine during a timing."""

import contextlib
import time
from collections.abc import Sequence

import psutil

from harness.spec.command import NoAnswer, answer

FOREIGN = 0.15  # work of other processes, in cores, that makes a round invalid
# The bits of NVML's clock event reasons that affect timing: power brake, thermal and hardware slowdown.
_SLOWDOWN = 0x8 | 0x20 | 0x40 | 0x80


class CpuWatch:
    """Processor seconds that other processes or the hypervisor used since the last look. The kernel's own threads do
    not count as others: they write our files and move our pages, and affect every engine alike."""

    def __init__(self) -> None:
        self._busy, self._ours, self._time = _busy(), _ours(), time.monotonic()

    def foreign(self) -> float:
        """Foreign work since the last call, in cores."""
        busy, ours, now = _busy(), _ours(), time.monotonic()
        elapsed = max(now - self._time, 1e-3)
        share = ((busy - self._busy) - (ours - self._ours)) / elapsed
        self._busy, self._ours, self._time = busy, ours, now
        return max(0.0, share)


class MachineWatch:
    """This machine from now on: :meth:`disturbance` names anything since the last call that makes a timing invalid."""

    def __init__(self, device: str) -> None:
        self._device, self._cpu = device, CpuWatch()

    def disturbance(self) -> str:
        foreign = self._cpu.foreign()
        if self._device == "cuda":
            return gpu_trouble()
        return f"other processes used {foreign:.2f} cores" if foreign > FOREIGN else ""


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _ours() -> float:
    """Processor seconds of this process and its descendants, including ended ones: ranks may end before this is
    read."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:  # the process has just ended
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total + _kernel()


def _kernel() -> float:
    """Processor seconds of the kernel's threads, where they are visible."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(2)
        if parent.name() == "kthreadd":
            return float(sum(thread.cpu_times().system for thread in parent.children()))
    return 0.0


def gpu_trouble() -> str:
    """The current disturbance on the GPUs: throttling, or processes that are not ours."""
    reasons = _query("--query-gpu=clocks_event_reasons.active")
    if any(int(reason, 16) & _SLOWDOWN for reason in reasons if reason.startswith("0x")):
        return "a GPU is throttled"
    ours = {psutil.Process().pid, *(p.pid for p in psutil.Process().children(recursive=True))}
    found = {int(pid) for pid in _query("--query-compute-apps=pid") if pid.isdigit()}
    # Inside a container the tool may show process ids of other namespaces; only existing ids can be foreign.
    foreign = {pid for pid in found - ours if psutil.pid_exists(pid)}
    return f"another process is on the GPU (pid {min(foreign)})" if foreign else ""


def _query(what: str) -> Sequence[str]:
    try:
        return answer(("nvidia-smi", what, "--format=csv,noheader"), 15.0).split()
    except NoAnswer:
        return ()
