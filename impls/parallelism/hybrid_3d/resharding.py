"""A run that is saved on one mesh and goes on on another: what comes after must not show it."""

import contextlib
import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, MoeConfig, Topology, Unsupported, Workload
from impls.common.plain import options

AFTER = 2  # steps: a counter that starts again at 1 is wrong, and memory and traffic are measured later


def check(workload: Workload, topology: Topology, sequence_parallel: bool) -> None:
    """Unsupported, with the reason, where the reference cannot run this."""
    if topology.ep > 1 and not isinstance(workload.model, MoeConfig):
        raise Unsupported(f"ep {topology.ep} without experts: the model is dense")
    if sequence_parallel and topology.tp == 1:
        raise Unsupported("there is no sequence parallelism without tensor parallelism")


def other(topology: Topology, how: str) -> Topology:
    """A mesh of as many ranks: ``turned`` (dp → tp → pp → dp), or ``unpiped``, the stages being data-parallel ranks
    from then on; experts are on as many of these as before, or as go into them. Raises Unsupported where that is the
    same mesh."""
    found = {
        "turned": Topology(dp=topology.pp, tp=topology.dp, pp=topology.tp, cp=topology.cp),
        "unpiped": Topology(dp=topology.dp * topology.pp, tp=topology.tp, cp=topology.cp),
    }[how]
    found = replace(found, ep=gcd(topology.ep, found.dp))
    if found == topology:
        raise Unsupported(f"{topology} {how} is {topology} again")
    return found


def meshes(topology: Topology, how: str) -> tuple[Topology, ...]:
    """Those that a run is on; without a ``how`` it stays where it is."""
    return (topology, other(topology, how)) if how else (topology,)


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A new folder that all ranks of this host see, until all of them have left it."""
    name = [tempfile.mkdtemp(prefix="plumbline-checkpoint-") if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(name, src=0)
    try:
        yield Path(name[0])
        dist.barrier()
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(name[0], ignore_errors=True)


class Moved:
    """``make`` builds a trainer with ``save(folder)`` and ``load(folder)`` on a mesh; ``how``: see :func:`other`."""

    def __init__(self, make: Callable[[Topology], Any], workload: Workload, topology: Topology, how: str) -> None:
        self.make, self.target, self.steps = make, other(topology, how), 0
        if reason := workload.check(self.target):
            raise Unsupported(f"on {self.target}, {reason}")
        if topology.dp != self.target.dp and options(workload, topology):
            raise Unsupported(f"routers balance micro-batches, which are of other sequences on {self.target}")
        self.trainer = make(topology)
        self.fallback = ""  # what the report shows of a trainer that does less than was asked

    def backward(self, batch: Batch) -> Tensor:
        return self.trainer.backward(batch)

    def update(self) -> None:
        self.trainer.update()
        self.steps += 1
        if self.steps == AFTER:
            with shared_folder() as folder:
                self.trainer.save(folder)
                dist.barrier()
                self.trainer = None  # no two models at a time
                gc.collect()
                self.trainer = self.make(self.target)
                self.trainer.load(folder)

    def gradients(self) -> Mapping[str, Tensor]:
        return self.trainer.gradients()

    def parameters(self) -> Mapping[str, Tensor]:
        return self.trainer.parameters()
