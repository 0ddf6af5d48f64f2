"""DeepSpeed-Ulysses: ``DistributedAttention`` around PyTorch's SDPA."""

from collections.abc import Mapping

import deepspeed.comm
from deepspeed.sequence.layer import DistributedAttention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import impls.engines.deepspeed.engine  # noqa: F401  its settings for the CPU come before DeepSpeed's first collective
from harness.spec import Topology, Unsupported, Workload
from impls.parallelism.context_parallel.block_attention import needs_flash
from impls.parallelism.context_parallel.spread import SequenceFirst


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[b, s, h, d], DeepSpeed's layout."""
    needs_flash(query)
    tensors = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True).transpose(1, 2)


class Ulysses(SequenceFirst):
    def __init__(self, workload: Workload, topology: Topology, layout: str, group: int, packed: bool) -> None:
        super().__init__(workload, topology, layout, group, packed)
        if workload.model.num_key_value_heads < self.group:
            raise Unsupported(
                f"DeepSpeed divides key heads and repeats none: {workload.model.num_key_value_heads} are too few for "
                f"{self.group} ranks"
            )
        deepspeed.comm.init_distributed(dist_init_required=False)
        self.attention = DistributedAttention(attention, self.mesh().get_group("group"), scatter_idx=2, gather_idx=1)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))
        return {"output": self.attention(*tensors, 0).transpose(1, 2)}


def build(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> Ulysses:
    return Ulysses(workload, topology, layout, group, packed)
