"""A checkpoint that knows no mesh: every part of a tensor is written once, and read by whoever needs some of it.

    part-i-j.safetensors       what stage i's rank j along tp holds:  "kind/name" → its part, cut as shards.py says
    experts-i-j.safetensors    what its rank j along ep has of experts, each of them whole
                               kind: master, or one of the optimizer's moments, in float32

A reader on another mesh looks into all files for a name. The parts of one tensor lie in the order of j, so an element's
place in the whole tensor follows from their sizes; each rank reads the pieces that overlap with its own part.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, cat

from impls.common.experts import is_expert
from impls.common.shards import bounds, dim
from impls.parallelism.expert_parallel.spread import narrowed, widened
from impls.parallelism.hybrid_3d.stage import weights_of
from impls.parallelism.hybrid_3d.steps import MOMENTS

Kinds = Mapping[str, Mapping[str, Tensor]]


def write(folder: Path, file: str, kinds: Kinds, steps: int) -> None:
    """``kinds``: kind → canonical name → this rank's part. To be called by one of the ranks that hold the same."""
    flat = {f"{kind}/{name}": tensor.contiguous() for kind, found in kinds.items() for name, tensor in found.items()}
    save_file(flat, folder / f"{file}.safetensors", {"steps": str(steps)})


class Reader:
    """Reads the parts of rank ``rank`` of ``t`` along tp. ``steps``: how many the optimizer had taken."""

    def __init__(self, folder: Path, rank: int, t: int) -> None:
        self.rank, self.t, self.stack = rank, t, ExitStack()
        names = sorted(folder.glob("*-*-*.safetensors"), key=lambda path: [int(n) for n in path.stem.split("-")[1:]])
        if not names:
            raise ValueError(f"there is no checkpoint in {folder}")
        self.files = [self.stack.enter_context(safe_open(name, "pt")) for name in names]
        self.home: dict[str, list[Any]] = {}
        for file in self.files:
            for key in file.keys():  # noqa: SIM118
                self.home.setdefault(key, []).append(file)
        self.steps = int(self.files[0].metadata()["steps"])

    def read(self, kind: str, name: str) -> Tensor:
        """This rank's part."""
        cut = dim(name)
        if cut is None:
            return self._home(kind, name)[0].get_tensor(f"{kind}/{name}")
        return self.share(kind, name, cut, self.rank, self.t)

    def share(self, kind: str, name: str, cut: int, rank: int, ranks: int) -> Tensor:
        """One of ``ranks`` parts, along the dim ``cut``, of a tensor whose parts in the files lie along that too."""
        parts = [file.get_slice(f"{kind}/{name}") for file in self._home(kind, name)]
        sizes = [part.get_shape()[cut] for part in parts]
        start, end = bounds(sum(sizes), rank, ranks)
        found, offset = [], 0
        for part, size in zip(parts, sizes, strict=True):
            first, last = max(start - offset, 0), min(end - offset, size)
            if first < last:
                found.append(part[first:last] if cut == 0 else part[:, first:last])
            offset += size
        return cat(found, cut)

    def _home(self, kind: str, name: str) -> list[Any]:
        if f"{kind}/{name}" not in self.home:
            raise ValueError(f"the checkpoint has no {kind}/{name}")
        return self.home[f"{kind}/{name}"]

    def close(self) -> None:
        self.stack.close()


def save(hybrid: Any, folder: Path) -> None:
    """One of the ranks that hold the same writes; of a tied embedding the first stage."""
    kinds = {kind: hybrid.states.named(kind) for kind in ("master", *MOMENTS[hybrid.workload.optimizer])}
    stage, rank = hybrid.pp.rank(), hybrid.tp.rank()
    first = {name for name, ranks in hybrid.homes.items() if ranks[0] == stage and not is_expert(name)}
    if hybrid.replicas.rank() == 0:
        mine = {kind: {n: t for n, t in found.items() if n in first} for kind, found in kinds.items()}
        write(folder, f"part-{stage}-{rank}", mine, hybrid.steps)
    if experts := hybrid.experts:
        whole = {
            kind: {n: widened(weights_of(n), t, hybrid.tp) for n, t in found.items() if is_expert(n)}
            for kind, found in kinds.items()
        }
        if experts.replicas.rank() == rank == 0:
            write(folder, f"experts-{stage}-{experts.ep.rank()}", whole, hybrid.steps)


def load(hybrid: Any, folder: Path) -> None:
    reader = Reader(folder, hybrid.tp.rank(), hybrid.tp.size())

    def part(kind: str, name: str) -> Tensor:
        if not is_expert(name):
            return reader.read(kind, name)
        ep = hybrid.experts.ep
        return narrowed(weights_of(name), reader.share(kind, name, 0, ep.rank(), ep.size()), hybrid.tp)

    hybrid.states.load(part, MOMENTS[hybrid.workload.optimizer], reader.steps)
    hybrid.steps = reader.steps
    reader.close()
