"""The parts of the block's tensors, as every engine cuts them."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Topology

# B_up's rows are up's, A_down's columns are down's; A_up and B_down are whole on every rank, and so are x and output.
CUT = {"up": 0, "B_up": 0, "down": 1, "A_down": 1}


class Block:
    def __init__(self, topology: Topology) -> None:
        self.t = topology.tp

    def split(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rank = dist.get_rank()
        return {
            name: tensor.chunk(self.t, CUT[name])[rank].contiguous() if name in CUT else tensor
            for name, tensor in tensors.items()
        }

    def gather(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole = dict(parts)
        for name in [each for each in CUT if each in parts and self.t > 1]:
            every = [torch.empty_like(parts[name]) for _ in range(self.t)]
            dist.all_gather(every, parts[name].contiguous())
            whole[name] = torch.cat(every, CUT[name])
        return whole
