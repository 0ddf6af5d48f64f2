"""flash-attn 2's flash_attn_with_kvcache: it chooses the number of splits itself."""

from collections.abc import Mapping

from flash_attn import flash_attn_with_kvcache
from torch import Tensor

from harness.spec import Function, Topology, Unsupported, Workload


def build(workload: Workload, topology: Topology, queries: int, unified: bool, paged: bool) -> Function:
    if workload.dtype != "bf16":
        raise Unsupported(f"flash-attn takes bf16 and fp16, not {workload.dtype}")

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output = flash_attn_with_kvcache(
            inputs["query"],
            inputs["key"],
            inputs["value"],
            cache_seqlens=inputs["lengths"],
            block_table=inputs.get("table"),
            causal=queries > 1,  # aligned to the bottom right
        )
        return {"output": output}

    return decode
