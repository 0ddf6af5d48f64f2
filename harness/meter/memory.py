"""Bytes that tensors hold on this rank's device, and their peak.

On CUDA the caching allocator counts the requested bytes: it rounds each tensor up, for which the engine is not
responsible. On the CPU a counting allocator in front of PyTorch's own does; where it cannot be compiled, a dispatch
mode over live storages replaces it, and ``meter()`` reports that.
"""

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.spec.command import NoAnswer, answer

COMPILE = 60.0  # time limit of the compiler in seconds
SOURCE = Path(__file__).with_name("counting_allocator.cpp")


class _Counter:
    """The compiled allocator's functions, or None before :func:`install` and where there is no compiler."""

    library: ctypes.CDLL | None = None
    problem: str = "not installed"


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plumbline"


def compile_allocator() -> Path:
    """Compiles the allocator for this torch and Python, once, and returns the library. A RuntimeError gives the reason
    of a failure."""
    import torch
    from torch.utils.cpp_extension import include_paths

    text = SOURCE.read_bytes()
    key = hashlib.sha256(f"{torch.__version__} {sys.version} {sysconfig.get_platform()}".encode() + text).hexdigest()
    library = cache() / f"counting_allocator-{key[:16]}.so"
    if library.exists():
        return library
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "")
    if not compiler:
        raise RuntimeError("no C++ compiler (g++ or clang++) on the PATH")
    if not shutil.which(compiler[0]):
        raise RuntimeError(f"the C++ compiler {compiler[0]}, named by CXX, does not exist")
    library.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        built = Path(scratch) / library.name
        abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
        command = [*compiler, "-O2", "-std=c++20", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
        command += [f"-I{path}" for path in include_paths()]
        command += [str(SOURCE), "-o", str(built), f"-L{folder}", "-lc10", f"-Wl,-rpath,{folder}"]
        try:
            answer(command, COMPILE)
        except NoAnswer as why:
            raise RuntimeError(f"the counting allocator does not compile: {why}") from None
        built.replace(library)  # atomic: two processes may compile at the same time
    return library


def install() -> None:
    """Puts the counter in front of PyTorch's CPU allocator. Must be called before the first tensor exists."""
    try:
        library = ctypes.CDLL(str(compile_allocator()))
    except (RuntimeError, OSError) as error:
        _Counter.problem = str(error)
        return
    for name in ("plumbline_current", "plumbline_peak"):
        getattr(library, name).restype = ctypes.c_int64
    library.plumbline_install()
    _Counter.library = library


def meter() -> str:
    """The name of the active meter, for the record."""
    import torch

    if torch.cuda.is_available():
        return "cuda caching allocator"
    if _Counter.library:
        return "counting allocator"
    return f"dispatch mode over live storages ({_Counter.problem})"


class _LiveStorages:
    """The fallback: total size of the live storages that operators returned."""

    def __init__(self) -> None:
        self.current = self.peak = 0
        self.seen: set[int] = set()

    def mode(self) -> Any:
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        counter = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                for leaf in tree_leaves(out):
                    if isinstance(leaf, torch.Tensor):
                        counter.add(leaf.untyped_storage())
                return out

        return Mode()

    def add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen or not size:
            return
        self.seen.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.current -= size


class Gauge:
    """Reads the device's memory relative to the moment of opening."""

    def __init__(self, current: Callable[[], int], peak: Callable[[], int], reset: Callable[[], None]) -> None:
        self._current, self._peak, self._reset = current, peak, reset
        self.start = current()

    def current(self) -> int:
        """Bytes held now, in excess of those held at the start."""
        return self._current() - self.start

    def peak(self) -> int:
        """The largest number of bytes held at once since the last :meth:`reset`, in excess of those held at the
        start."""
        return self._peak() - self.start

    def reset(self) -> None:
        self._reset()


def _warm_cublas() -> None:
    """cuBLAS allocates a workspace of about 32 MiB from PyTorch for each thread that multiplies: this one and
    autograd's. They are allocated here before counting starts."""
    import torch

    one = torch.ones(16, 16, device="cuda", requires_grad=True)
    (one @ one).sum().backward()
    torch.cuda.synchronize()


@contextlib.contextmanager
def gauge() -> Iterator[Gauge]:
    """Opens a gauge; the fallback meter sees only allocations inside the block."""
    import torch

    if torch.cuda.is_available():
        _warm_cublas()

        def requested(which: str) -> int:
            return int(torch.cuda.memory_stats().get(f"requested_bytes.all.{which}", 0))

        def current() -> int:
            torch.cuda.synchronize()
            torch.empty(1, device="cuda")  # the next allocation notices memory that other streams have freed
            return requested("current")

        yield Gauge(current, partial(requested, "peak"), torch.cuda.reset_peak_memory_stats)
    elif _Counter.library:
        library = _Counter.library
        yield Gauge(library.plumbline_current, library.plumbline_peak, library.plumbline_reset)
    else:
        live = _LiveStorages()

        def reset() -> None:
            live.peak = live.current

        with live.mode():
            yield Gauge(lambda: live.current, lambda: live.peak, reset)
