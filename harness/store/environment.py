"""Provenance: the hardware and software of a run. It has no host name, user name or path, so that a report can be
published."""

import os
import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from harness.spec.command import NoAnswer, answer
from harness.spec.variables import told

PACKAGES = ("plumbline", "torch", "transformers", "triton", "numpy")  # beside the engines
HARDWARE = ("cpu", "cores", "memory", "gpus")


def environment(gpus: Sequence[str] = (), driver: str | None = None, engines: Sequence[str] = ()) -> dict[str, Any]:
    """This machine and its software. ``gpus`` names the GPUs in use, ``driver`` is the version of theirs; ``engines``
    are the engines' distributions.

    ``memory`` is in bytes; ``cores`` are the logical cores that this process may use. ``commit`` is None if the source
    is not a git checkout, and a package's version is None if it is not installed. ``variables``: variables of the shell
    that may change figures.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "gpus": list(gpus),
        "driver": driver,
        **_checkout(Path(__file__).resolve()),
        "packages": {name: _version(name) for name in dict.fromkeys((*PACKAGES, *engines))},
        "variables": told(os.environ),
    }


def hardware_key(environment: Mapping[str, Any]) -> str:
    """The exact hardware in one line; figures are compared over time only under the same key.

    Memory is rounded to GiB, since its last digits change with the kernel.
    """
    if missing := [name for name in HARDWARE if name not in environment]:
        raise ValueError(f"environment has no {', '.join(missing)}: the hardware is not known; environment() has all")
    cpu = f"{environment['cores']} x {environment['cpu']}, {round(environment['memory'] / 2**30)} GiB"
    gpus = [f"{count} x {name}" for name, count in sorted(Counter(environment["gpus"]).items())]
    nodes = [f"{environment['nodes']} nodes"] if environment.get("nodes", 1) > 1 else []
    return "; ".join([cpu, *gpus, *nodes])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _checkout(source: Path) -> dict[str, Any]:
    """The commit of ``source``, and whether tracked files differ from it.

    Only a tracked file counts: an installation may lie inside the checkout of another project.
    """
    git = ("git", "-C", str(source.parent))
    if _output(*git, "ls-files", "--error-unmatch", source.name) is None:
        return {"commit": None, "dirty": None}
    commit = _output(*git, "rev-parse", "--verify", "HEAD")
    changes = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _output(*command: str) -> str | None:
    """The output of ``command``; None if it is not installed, fails, or takes longer than 20 s."""
    try:
        return answer(command, 20.0) if shutil.which(command[0]) else None
    except NoAnswer:
        return None
