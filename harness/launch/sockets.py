"""Sockets in a folder; ranks and servers find their parent by the path."""

import contextlib
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A socket's address has at most 107 bytes, and TMPDIR may be longer, so the address uses the folder's
    descriptor."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    with _address(path) as address:
        listener.bind(address)
    listener.listen(64)
    return listener


def accept(listener: socket.socket, timeout: float) -> Connection | None:
    """The next connection, or None if there is none within ``timeout`` seconds."""
    listener.settimeout(max(timeout, 0.01))
    try:
        accepted, _ = listener.accept()
    except TimeoutError:
        return None
    accepted.setblocking(True)
    return Connection(accepted.detach())


def connect(path: Path) -> Connection:
    with socket.socket(socket.AF_UNIX) as caller, _address(path) as address:
        caller.connect(address)
        return Connection(caller.detach())
