"""Sockets in a folder, by whose path ranks and servers find their parent."""

import contextlib
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A socket's address has 107 bytes at most, and TMPDIR may be longer: it goes through the folder's descriptor."""
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
    """The next that connects, or None if nobody does within ``timeout`` seconds."""
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
