"""What leaves the machine for everybody to read names neither the machine nor its users.

Every text of the site, its reports, feeds, tables and bundles passes through :func:`published`, whatever the store has.
"""

import getpass
import ipaddress
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.store.redact import redact

ROOT = str(Path(__file__).resolve().parents[2])  # of the checkout, or the folder of installed packages
PLAIN = frozenset({float, int, bool, type(None)})
NAME = re.compile(r"[\w-][\w.-]*")  # of a case, an engine, a version: no path, no address
TOLD = re.compile(r"[\d.-]")  # a host's name with one of these is told from the name of an engine or a topic
PUBLIC = ("localhost", "root")
SYSTEM = ("/bin/", "/dev/", "/etc/", "/lib/", "/lib64/", "/proc/", "/sbin/", "/sys/", "/usr/", "/var/run/")
KEPT = re.compile(r".*/((?:site|dist)-packages/.*|python3\.\d+/.*)")
HOME = re.compile(r"/(?:home|Users)/[^/]+/?")
SUBSTITUTES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b((?:postgres|mysql|mariadb|redis|mongodb|ssh|sftp|ftp|tcp|nfs|smb)[\w+]*://)[^\s'\"]+"), r"\1***"),
    (
        re.compile(r"\b(https?://)(?!localhost\b)(?:\*{3}@)?[\w-]+(?=[:/\s'\"]|$)"),
        r"\1***",
    ),  # of a network of one's own
    (re.compile(r"(--(?:hosts|head|remote-shell|slurm)[= ])(?:'[^']*'|\"[^\"]*\"|\S+)"), r"\1***"),
    (re.compile(r"\b(node )[\w.#-]+(?= was lost\b|: )"), r"\1***"),  # of harness.launch.cluster
    (re.compile(r"\b(srun: error: )[\w.-]+(?=: )"), r"\1***"),
    (re.compile(r"\b[\w-]+(?:\.[\w-]+)*\.(?:corp|home|internal|intra|intranet|lan|local|localdomain)\b"), "***"),
    (re.compile(r"(?<![\w/])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "***"),
)
QUOTED = re.compile(r"(?<=(['\"]))/[^'\"\n]*/[^'\"\n]*(?=\1)")
FILE_URL = re.compile(r"\b((?:sqlite|file)://)(/[^\s'\"?#]+)")
PATH = re.compile(r"(?<![\w.~*…/-])/(?:[^\s'\"/:,;()<>\[\]|=&?#]+/)+[^\s'\"/:,;()<>\[\]|=&?#]*")
# A version of four parts looks like an address, but stands behind a name, a comparison or a hyphen.
IPV4 = re.compile(r"(?<![\w.=<>~!+-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-])(?!\.\w)")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:]*(?![\w:])")


def published(value: Any) -> Any:
    """``value``, in JSON's types, with each of its texts as everybody may read it.

    Users, passwords and tokens become ``***``, as do addresses and names of hosts; the home folder is ``~``; of other
    paths the part remains that is the same everywhere, as ``site-packages/torch/nn/functional.py``.
    """
    known: dict[str, str] = {}  # a run has a million texts, and few of them are unlike
    hosts, user = _names()

    def text(original: str) -> str:
        found = known.get(original)
        if found is None:
            found = known[original] = _cleared(original, hosts, user)
        return found

    def walk(value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return text(value)
        if kind is list:
            return [each if type(each) in PLAIN else walk(each) for each in value]
        if isinstance(value, dict):
            return {text(name): each if type(each) in PLAIN else walk(each) for name, each in value.items()}
        return [walk(each) for each in value] if isinstance(value, tuple) else value

    return walk(value)


def _names() -> tuple[tuple[str, ...], str]:
    """The names of this host, and of its user: none if it is one that many have."""
    host, user = socket.gethostname(), ""
    with suppress(OSError, KeyError, ImportError):
        user = getpass.getuser()
    hosts = dict.fromkeys((host, host.partition(".")[0]))
    return tuple(name for name in hosts if len(name) > 2 and name not in PUBLIC), user if user not in PUBLIC else ""


def _cleared(text: str, hosts: tuple[str, ...], user: str) -> str:
    if NAME.fullmatch(text):
        return "HOST" if text in hosts and TOLD.search(text) else text
    text = redact(text)
    for name, substitute in (*((host, "HOST") for host in hosts), (user, "USER")):
        if name and name in text:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", substitute, text)
    for pattern, substitute in SUBSTITUTES:
        text = pattern.sub(substitute, text)
    if "/" in text:
        text = FILE_URL.sub(_file_url, text)
        text = PATH.sub(lambda found: _path(found[0]), QUOTED.sub(lambda found: _path(found[0]), text))
    text = IPV4.sub(_address, text) if "." in text else text
    return IPV6.sub(_address, text) if ":" in text else text


def _file_url(found: re.Match[str]) -> str:
    scheme, path = found[1], found[2]
    relative = scheme == "sqlite://" and not path.startswith("//")
    return found[0] if relative else f"{scheme}/{_path('/' + path.lstrip('/'))}"


def _path(path: str) -> str:
    """The part of an absolute path that says nothing of this machine."""
    if path.startswith(f"{ROOT}/"):
        return path.removeprefix(f"{ROOT}/")
    if kept := KEPT.fullmatch(path):
        return kept[1]
    if path.startswith(SYSTEM):
        return path
    if HOME.fullmatch(path):
        return "~"
    parts = path.strip("/").split("/")
    # The last part of a short path may be the name of a user, as in /scratch/me.
    return f"…/{parts[-1]}" if len(parts) > 2 or "." in parts[-1] else "…"


def _address(found: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return found[0]
    return found[0] if address.is_loopback or address.is_unspecified else "***"
