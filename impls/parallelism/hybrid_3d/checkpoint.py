"""A checkpoint that knows no mesh: every part of a tensor is written once, and read by whoever needs some of it.

    part-i-j.safetensors    what stage i's rank j along tp holds:  "kind/name" → its part, cut as shards.py says
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

from impls.parallelism.tensor_parallel.shards import bounds, dim

Kinds = Mapping[str, Mapping[str, Tensor]]


def write(folder: Path, stage: int, part: int, kinds: Kinds, steps: int) -> None:
    """``kinds``: kind → canonical name → this rank's part. To be called by one of the ranks that hold the same."""
    flat = {f"{kind}/{name}": tensor.contiguous() for kind, found in kinds.items() for name, tensor in found.items()}
    save_file(flat, folder / f"part-{stage}-{part}.safetensors", {"steps": str(steps)})


class Reader:
    """Reads the parts of rank ``rank`` of ``t`` along tp. ``steps``: how many the optimizer had taken."""

    def __init__(self, folder: Path, rank: int, t: int) -> None:
        self.rank, self.t, self.stack = rank, t, ExitStack()
        names = sorted(folder.glob("part-*.safetensors"), key=lambda path: [int(n) for n in path.stem.split("-")[1:]])
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
        key, cut = f"{kind}/{name}", dim(name)
        if key not in self.home:
            raise ValueError(f"the checkpoint has no {key}")
        if cut is None:
            return self.home[key][0].get_tensor(key)
        parts = [file.get_slice(key) for file in self.home[key]]
        sizes = [part.get_shape()[cut] for part in parts]
        start, end = bounds(sum(sizes), self.rank, self.t)
        found, offset = [], 0
        for part, size in zip(parts, sizes, strict=True):
            first, last = max(start - offset, 0), min(end - offset, size)
            if first < last:
                found.append(part[first:last] if cut == 0 else part[:, first:last])
            offset += size
        return cat(found, cut)

    def close(self) -> None:
        self.stack.close()


def save(hybrid: Any, folder: Path) -> None:
    """One of the ranks that hold the same writes; of a tied embedding the first stage."""
    kinds = {"master": hybrid.optimizer.parameters(), **hybrid.optimizer.moments()}
    if hybrid.dp.rank() == 0:
        first = {name for name, ranks in hybrid.homes.items() if ranks[0] == hybrid.pp.rank()}
        mine = {kind: {n: t for n, t in found.items() if n in first} for kind, found in kinds.items()}
        write(folder, hybrid.pp.rank(), hybrid.places.get_local_rank("tp"), mine, hybrid.steps)


def load(hybrid: Any, folder: Path) -> None:
    reader = Reader(folder, hybrid.places.get_local_rank("tp"), hybrid.topology.tp)
    hybrid.optimizer.load(reader.read, reader.steps)
    hybrid.steps = reader.steps
    reader.close()
