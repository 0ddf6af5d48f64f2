"""The releases that a user names: ``deepspeed==0.19.2,0.19.5`` or ``deepspeed==0.19.2..0.19.8``."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

EXAMPLE = "write deepspeed==0.19.2,0.19.5 or, for all releases of the package index between two, 0.19.2..0.19.8"


@dataclass(frozen=True)
class Asked:
    """``versions``: the oldest first, as the user or the index writes them."""

    package: str
    versions: tuple[str, ...]


def parse(text: str, index: Callable[[str], list[str]] | None = None) -> Asked:
    """A ValueError says what is wrong. ``index`` gives the releases of a package; it is asked for ranges alone."""
    package, equals, rest = (part.strip() for part in text.partition("=="))
    if not (equals and rest) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", package):
        raise ValueError(f"{text!r} names no releases; {EXAMPLE}")
    found: list[str] = []
    for part in (part.strip() for part in rest.split(",")):
        first, dots, last = part.partition("..")
        low, high = _version(first, text), _version(last if dots else first, text)
        if low > high:
            raise ValueError(f"{part!r}: {last} is older than {first}")
        if not dots:
            found.append(first)
            continue
        between = [version for version in (index or releases)(package) if low <= Version(version) <= high]
        if not between:
            raise ValueError(f"the package index has no release of {package} from {first} to {last}")
        found += between
    unique = {_version(version, text): version for version in found}
    return Asked(package, tuple(unique[version] for version in sorted(unique)))


def _version(version: str, text: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        raise ValueError(f"{version!r} in {text!r} is no version; {EXAMPLE}") from None


def releases(package: str) -> list[str]:
    """The releases that pip finds for this Python, in the index of pip's own configuration; no pre-releases."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", package]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    line = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if line is None:
        said = [text for text in (done.stderr or done.stdout).splitlines() if text.strip()]
        raise ValueError(f"pip finds no releases of {package}: {said[-1] if said else 'it said nothing'}")
    return sorted(line[1].split(", "), key=Version)
