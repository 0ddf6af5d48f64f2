"""The distribution: a tensor-parallel rank has its heads' rows of q_up and kv_up, their columns of out, and all of the
rest."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Topology, Unsupported

CUT = {"q_up": 0, "kv_up": 0, "out": 1}  # dimension


class Heads:
    """``split`` and ``gather`` of a Function."""

    cut: Mapping[str, int] = CUT

    def __init__(self, topology: Topology) -> None:
        self.tp = topology.tp
        if topology.world_size != self.tp:
            raise Unsupported(f"latent attention alone is divided along tp only, not over {topology}")

    def split(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.tp == 1:
            return dict(whole)
        rank = dist.get_rank()
        return {
            name: tensor.chunk(self.tp, self.cut[name])[rank].contiguous() if name in self.cut else tensor
            for name, tensor in whole.items()
        }

    def gather(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._whole(name, part.detach()) for name, part in parts.items()}

    def _whole(self, name: str, part: Tensor) -> Tensor:
        if name not in self.cut or self.tp == 1:
            return part
        pieces = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.tp)]
        dist.all_gather(pieces, part.contiguous())
        return torch.cat(pieces, self.cut[name])
