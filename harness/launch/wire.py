"""Authenticated connections between the session and the agents of its nodes."""

import contextlib
import os
import socket
import struct
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

import psutil

from harness.launch.placement import LaunchError

GREETING = 10.0  # seconds for a caller to show that it knows the key
SILENT = 5  # seconds without a word after which the other end is asked whether it is there
ASKED = 2  # seconds between further questions
TIMES = 4  # questions without an answer after which the connection is lost
KEY = "PLUMBLINE_AGENT_KEY"  # the variable that hands an agent its key


def listen() -> socket.socket:
    """A listener on every interface, at a free port."""
    listener = socket.socket(socket.AF_INET)
    listener.bind(("", 0))
    listener.listen(64)
    return listener


def accept(listener: socket.socket, key: bytes, timeout: float) -> Connection | None:
    """The next caller that knows the key; None if there is none within ``timeout`` seconds, or it does not."""
    listener.settimeout(timeout)
    try:
        accepted, _ = listener.accept()
    except TimeoutError:
        return None
    connection = _connection(accepted)
    try:
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
    except (OSError, EOFError, AssertionError, AuthenticationError):  # a stranger, who may say anything
        connection.close()
        return None
    _patient(connection)
    return connection


def dial(address: str, port: int, key: bytes) -> Connection:
    connection = _connection(socket.create_connection((address, port), timeout=GREETING))
    answer_challenge(connection, key)
    deliver_challenge(connection, key)
    _patient(connection)
    return connection


def _connection(caller: socket.socket) -> Connection:
    """Until the greeting is over, it waits for a message for a limited time. A peer whose machine or network is gone is
    noticed, though it cannot close the connection."""
    caller.setblocking(True)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT)
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASKED)
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TIMES)
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (SILENT + ASKED * TIMES))
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(GREETING), 0))
    return Connection(caller.detach())


def _patient(connection: Connection) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))


def own_address(connection: Connection) -> str:
    """This end's address."""
    with socket.socket(fileno=os.dup(connection.fileno())) as caller:
        return str(caller.getsockname()[0])


def hang_up(connection: Connection) -> None:
    """Ends the connection for both ends and for threads that wait for its messages."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as caller:
        caller.shutdown(socket.SHUT_RDWR)


def interface(address: str) -> str:
    """The network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == socket.AF_INET and each.address == address for each in addresses):
            return name
    raise LaunchError(f"no network interface of {socket.gethostname()} has the address {address}")


def head_address(hosts: tuple[str, ...]) -> str:
    """This machine's address for the hosts: that of the route to one, or to the outside, or else the first one."""
    for host in (*reversed(hosts), "192.0.2.1"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # nothing is sent
            return str(probe.getsockname()[0])
    found = [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    return (found or ["127.0.0.1"])[0]
