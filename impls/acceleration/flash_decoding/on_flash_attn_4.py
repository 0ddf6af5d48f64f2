"""flash-attn 4 (CuTe-DSL): flash_attn_varlen_func on a padded or paged cache. With `num_splits` 0 it chooses the number
of splits itself; its default is one."""

from collections.abc import Mapping

from flash_attn.cute import flash_attn_varlen_func
from torch import Tensor

from harness.spec import Function, Topology, Unsupported, Workload


def build(workload: Workload, topology: Topology, queries: int, unified: bool, paged: bool) -> Function:
    if workload.dtype != "bf16":
        raise Unsupported(f"flash-attn takes bf16 and fp16, not {workload.dtype}")

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output, _ = flash_attn_varlen_func(
            inputs["query"],
            inputs["key"],
            inputs["value"],
            seqused_k=inputs["lengths"],
            page_table=inputs.get("table"),
            causal=queries > 1,  # aligned to the bottom right
            num_splits=0,
        )
        return {"output": output}

    return decode
