"""yunchang's Ulysses, and its ``LongContextAttention``: USP, whose rings are those of ring-flash-attn.

It is built around flash-attn, which has a substitute kernel on the CPU, since yunchang's own choices of PyTorch's
kernels have no backward pass.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Topology, Unsupported, Workload
from impls.parallelism.context_parallel.flash_attn_on_cpu import NARROW, stand_in
from impls.parallelism.context_parallel.spread import SequenceFirst

with stand_in() as FALLBACK:
    from yunchang import LongContextAttention, UlyssesAttention, set_seq_parallel_pg


class Unified(SequenceFirst):
    fallback = FALLBACK

    def __init__(self, workload: Workload, topology: Topology, layout: str, group: int, packed: bool) -> None:
        super().__init__(workload, topology, layout, group, packed)
        if workload.model.num_key_value_heads % self.group:
            raise Unsupported(
                f"yunchang divides key heads and repeats none: {workload.model.num_key_value_heads} do not divide "
                f"among {self.group} ranks"
            )
        narrow = workload.dtype == "bf16"
        if group == 0 and (narrow or not torch.cuda.is_available()):
            self.attention = UlyssesAttention(self.mesh().get_group("group"))
        elif not narrow:
            raise Unsupported(f"flash-attn takes bf16, and yunchang is wrong in {workload.dtype}: {NARROW}")
        elif self.ring == 1 and dist.get_backend() == "gloo":
            raise Unsupported("yunchang's ring of one rank sends gradients to itself, which gloo cannot")
        else:
            set_seq_parallel_pg(self.group, self.ring, dist.get_rank(), topology.cp)
            self.attention = LongContextAttention(ring_impl_type="zigzag")

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))
        return {"output": self.attention(*tensors, causal=True).transpose(1, 2)}


def build(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> Unified:
    return Unified(workload, topology, layout, group, packed)
