"""A simulated accelerator: CPU tensors take the place of CUDA's, so that a reference's step can be watched.

Tensors put on :data:`HERE` count as being on the device, and so does everything computed from them. Then, as with CUDA:

- an operator on tensors in both places raises, except for the host's numbers without a dimension;
- every wait of the host for the device is recorded in ``waits``; ``torch.cuda.set_sync_debug_mode`` warns of the same.

CUDA's kernels and streams and NCCL's restrictions are not simulated.
"""

import contextlib
import traceback
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import device_mesh
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from impls.common import mesh

HERE, HOST = torch.device("cuda", 0), torch.device("cpu")
# The host needs their results' shapes or values.
WAIT = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
    "_unique2",
    "unique_consecutive",
}
READ = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
DATA = {torch.tensor, torch.as_tensor, Tensor.new_tensor}  # copied from the host's unpinned memory
# On CUDA it needs no value; on the CPU it computes the largest and the smallest.
QUIET = {torch.nn.functional.one_hot, torch._C._nn.one_hot}


class Accelerator:
    """A context: :func:`impls.common.mesh.device` is HERE, and ``waits`` has the lines in which the host waited."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self._there: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}

    def __enter__(self) -> "Accelerator":
        self._stack = contextlib.ExitStack()
        self._stack.callback(setattr, mesh.device, "__code__", mesh.device.__code__)
        mesh.device.__code__ = _here.__code__
        handle = device_mesh._get_device_handle  # a mesh picks each rank's device by it
        self._stack.callback(setattr, device_mesh, "_get_device_handle", handle)
        device_mesh._get_device_handle = lambda *_: None
        # The engine is called by an operator in which the mode is off, but hooks and backward passes need it.
        run = torch.autograd._engine_run_backward
        self._stack.callback(setattr, torch.autograd, "_engine_run_backward", run)
        torch.autograd._engine_run_backward = partial(self._backward, run)
        self._stack.enter_context(_Operators(self))
        self._stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _backward(self, run: Any, *args: Any, **kwargs: Any) -> Any:
        with _Functions(self):
            return run(*args, **kwargs)

    def holds(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and _key(tensor) in self._there

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor counts as being on the device from now on."""
        self._there.setdefault(_key(tensor), StorageWeakRef(tensor.untyped_storage()))
        return tensor

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned.setdefault(_key(tensor), StorageWeakRef(tensor.untyped_storage()))
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return _key(tensor) in self._pinned

    def wait(self, what: object) -> None:
        frames = [f for f in traceback.extract_stack() if "/impls/" in f.filename and "/tests/" not in f.filename]
        source = frames[-1].line or "" if frames else ""
        if ".wait()" in source or (what == "copy_" and source.startswith("dist.")):
            return  # gloo's own copy: NCCL's copies are on the device
        line = f"{frames[-1].filename.rpartition('/impls/')[2]}:{frames[-1].lineno}" if frames else "a backward pass"
        self.waits.append(f"{line} {what}")


def _here() -> torch.device:
    import torch

    return torch.device("cuda", 0)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_device(value: object) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.partition(":")[0] in ("cuda", "cpu"))


def _on_host(value: Any) -> Any:
    return HOST if _is_device(value) and torch.device(value).type == "cuda" else value


class _Functions(TorchFunctionMode):
    """The place that the arguments name or request."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self.at = accelerator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, at = dict(kwargs or {}), self.at
        if func in (torch.device, torch._C._nn._parse_to):  # the second is nn.Module.to's
            return func(*args, **kwargs)
        first = args[0] if args else None
        there = at.holds(first)
        if func == Tensor.device.__get__ and there:
            return HERE
        if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__) and there:
            return bool(func == Tensor.is_cuda.__get__)
        if func is Tensor.is_pinned:
            return at.is_pinned(first)
        if func is Tensor.pin_memory:
            return at.pin(first.clone())
        if func in READ and there:
            at.wait(func.__name__)
        pinned = kwargs.pop("pin_memory", None) is not None  # requested if there is CUDA
        named = [torch.device(value) for value in (*args, *kwargs.values()) if _is_device(value)]
        to = HOST if func is Tensor.cpu else next((p for p in named if p.type in ("cpu", "cuda")), None)
        args, kwargs = tree_map(_on_host, (args, kwargs))
        if func in QUIET and there:
            with _disable_current_modes():
                return at.put(func(*args, **kwargs))
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            to = HERE if at.holds(args[1]) else HOST
        if func in (Tensor.to, Tensor.cpu) and to is not None and there != (to.type == "cuda") and not first.is_meta:
            return self._across(func, first, to, args, kwargs)
        out = func(*args, **kwargs)
        if pinned:
            at.pin(out)
        if to is not None and isinstance(out, Tensor):
            if to.type == "cuda" and func is not Tensor.to and not out.is_meta:
                at.put(out)
            if to.type == "cuda" and func in DATA:
                at.wait(func.__name__)
        elif func in DATA and isinstance(out, Tensor) and there:
            at.put(out)
            at.wait(func.__name__)
        return out

    def _across(self, func: Any, tensor: Tensor, to: torch.device, args: Any, kwargs: Any) -> Tensor:
        """A copy between device and host. The host waits, unless it has requested otherwise, from pinned memory."""
        free = kwargs.pop("non_blocking", False) or (True in args[1:])
        if not free or (to.type == "cuda" and not self.at.is_pinned(tensor)):
            self.at.wait(f"{func.__name__} {to.type}")
        with _disable_current_modes():
            out = func(tensor, *args[1:], **kwargs)
            out = out.clone() if _key(out) == _key(tensor) else out
        return self.at.put(out) if to.type == "cuda" else out


class _Operators(TorchDispatchMode):
    """The place of operators' results."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self.at = accelerator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, at = kwargs or {}, self.at
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [at.holds(tensor) for tensor in tensors]
        name = str(func).removeprefix("aten.").removesuffix(".default")
        copies = name in ("copy_", "_foreach_copy_")
        if any(there) and func.namespace == "aten":
            masks = name.startswith("index") and any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
            if (name in WAIT and kwargs.get("output_size") is None) or masks:
                at.wait(name)
            if not all(there):
                self._mixed(name, copies, tensors, there, args, kwargs)
        out = func(*args, **kwargs)
        if any(there) and not copies:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    at.put(leaf)
        return out

    def _mixed(self, name: str, copies: bool, tensors: Any, there: Any, args: Any, kwargs: Any) -> None:
        if copies:
            free = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            source = [t for t, on in zip(tensors, there, strict=True) if not on]
            if not free or not all(self.at.is_pinned(t) for t in source):
                self.at.wait(name)
            return
        written = name.rpartition(".")[0] or name
        number = all(on or not t.dim() for t, on in zip(tensors, there, strict=True))
        if not number or (written.endswith("_") and not there[0]):
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but they are on cuda and cpu")
