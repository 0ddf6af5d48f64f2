"""Two network namespaces of this machine, joined by a pair of virtual Ethernet devices: two hosts."""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000
SHELL = "ip netns exec"  # runs a command in a namespace, as ssh does on a host


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def joined() -> Iterator[tuple[str, str]]:
    """Their names. The first has the address 10.77.0.1, the second 10.77.0.2."""
    names = f"plumb-a{os.getpid()}", f"plumb-b{os.getpid()}"
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "plumb0", "netns", names[0], "type", "veth", "peer", "name", "plumb1", "netns", names[1])
        for place, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{place + 1}/24", "dev", f"plumb{place}")
            for device in ("lo", f"plumb{place}"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Moves this thread into the namespace, and with it the threads and processes that it starts."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(Path("/run/netns") / name, os.O_RDONLY)
    try:
        _enter(there)
        yield
    finally:
        _enter(before)
        os.close(there)
        os.close(before)


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def absent() -> str:
    """The reason why this machine cannot have them; empty if it can."""
    if not shutil.which("ip"):
        return "ip not found: apt-get install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with joined():
            return ""
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
