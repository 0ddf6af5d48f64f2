"""DeepSpeed's operators for ZenFlow and files, compiled once per environment: ``python -m`` this module.

It imports nothing before there is something to compile. A file beside the operator records the outcome.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from impls.engines.extensions import folder


class Operator(NamedTuple):
    builder: str  # in deepspeed.ops.op_builder
    parts: tuple[str, ...]  # operators in the order of compilation; an older DeepSpeed has no pin_memory
    users: str
    requires: str


OPERATORS = {
    "cpu_adam": Operator("CPUAdamBuilder", ("cpu_adam",), "which ZenFlow needs", "a C++ compiler"),
    "async_io": Operator(
        "AsyncIOBuilder",
        ("pin_memory", "async_io"),
        "which states and weights in files need",
        "a C++ compiler and libaio-dev",
    ),
}


def needs(engine: str, states_on: str, **_: Any) -> bool:
    """Whether the engine needs one of the operators for this variant."""
    return engine == "zenflow" or (engine == "deepspeed" and states_on == "files")


def missing(operator: str) -> str:
    """The reason why the operator cannot be loaded, or an empty string."""
    found = _outcome(operator)
    if found is None:
        return f"DeepSpeed's {operator} is not built; once: python -m impls.parallelism.zero_offload.operators"
    return f"DeepSpeed's {operator} cannot be built here: {found['why']}" if found["why"] else ""


def libraries(operator: str) -> list[Path]:
    """The operators that can be loaded, in this order."""
    return [library for library in map(_library, OPERATORS[operator].parts) if library.exists()]


def _library(part: str) -> Path:
    return folder() / part / f"{part}.so"


def _outcome(operator: str) -> dict[str, str] | None:
    """``why``: the reason why it could not be compiled, empty if it was compiled; None if the installed versions have
    not been tried."""
    try:
        found: dict[str, str] = json.loads((folder() / operator / "outcome.json").read_text())
    except (OSError, ValueError):
        return None
    tried = found["of"] == _key() and (found["why"] or _library(operator).exists())
    return found if tried else None


def _key() -> str:
    """The target of the compilation: the code uses every instruction of this CPU."""
    info = Path("/proc/cpuinfo")
    about = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in about if line.startswith(("flags", "Features"))), "")
    of = f"{version('torch')} {version('deepspeed')} {sys.version} {flags}"
    return hashlib.sha256(of.encode()).hexdigest()


def main() -> int:
    """Compiles missing operators and prints a line for each step; compilers' output goes to ``build.log``."""
    if not any(map(missing, OPERATORS)):
        return 0
    os.nice(10)  # cases run meanwhile
    try:
        folder().mkdir(parents=True, exist_ok=True)
        lock = (folder() / "build.lock").open("w")
    except OSError as error:
        print(f"DeepSpeed's operators are not built: {error.strerror}: TORCH_EXTENSIONS_DIR may name another folder")
        return 1
    with lock, _quiet() as said:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("DeepSpeed's operators: another process builds them; waiting for it", file=said, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it even if that process is killed
        for operator in OPERATORS:
            if missing(operator):
                why = _build(operator, said)
                done = f"cannot be built here, its cases are skipped: {why}" if why else "is built"
                print(f"DeepSpeed's {operator} {done}", file=said, flush=True)
    return 0


@contextmanager
def _quiet() -> Iterator[TextIO]:
    """Redirects the output of this process and its children to a file; yields a stream for messages."""
    with (folder() / "build.log").open("w") as log, os.fdopen(os.dup(1), "w", encoding="utf-8") as said:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        yield said


def _build(operator: str, said: TextIO) -> str:
    """Builds the operator; returns the reason of a failure, or an empty string."""
    about = OPERATORS[operator]
    for part in about.parts:
        # A killed build leaves it, and PyTorch would wait for it forever; only the holder of build.lock builds.
        (folder() / part / "lock").unlink(missing_ok=True)
    try:
        from impls.engines.deepspeed.engine import builder

        compiles = builder(about.builder)
        why = "" if compiles.is_compatible(verbose=False) else f"it needs {about.requires}"
        if not why:
            begins = f"DeepSpeed's {operator}, {about.users}, is compiled once, for one to four minutes"
            print(f"{begins}; cases that do not need it run meanwhile", file=said, flush=True)
            compiles.load(verbose=False)
    except Exception as error:  # the reason is whatever ends a build
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
        why = next((line for line in lines if "error:" in line), lines[0])
    (folder() / operator).mkdir(exist_ok=True)
    (folder() / operator / "outcome.json").write_text(json.dumps({"of": _key(), "why": why}))
    return why


if __name__ == "__main__":
    sys.exit(main())
