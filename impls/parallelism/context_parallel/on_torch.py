"""PyTorch's experimental context parallelism: its templates of ring attention around SDPA's flash kernels.

With load balancing its layout is zig-zag, without it contiguous.
"""

from collections.abc import Mapping

from torch import Tensor

from harness.spec import Topology, Workload
from impls.engines.torch.ring import ring
from impls.parallelism.context_parallel.spread import Spread


class RingAttention(Spread):
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"output": self.attend(*(inputs[name] for name in ("query", "key", "value")))}


def build(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> RingAttention:
    attention = RingAttention(workload, topology, layout, group, packed)
    attention.attend, attention.fallback = ring(attention.mesh()["ring"], layout)
    return attention
