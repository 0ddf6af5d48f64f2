"""flash-attn 2 (Dao-AILab): tensors are [b, s, h, d], or packed [tokens, h, d]. Causal means the bottom right, and a
window of (left, right) counts the keys beside the query's own."""

from collections.abc import Mapping
from typing import Any

from flash_attn import flash_attn_func, flash_attn_varlen_func
from torch import Tensor

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_attention.rules import Rules


def build(workload: Workload, topology: Topology, **variant: Any) -> Function:
    rules = Rules.of(**variant)
    if workload.dtype != "bf16":
        raise Unsupported(f"flash-attn takes fp16 and bf16, not {workload.dtype}")
    if variant.get("sinks"):
        raise Unsupported("flash-attn 2 has no sinks")
    if rules.causal and not rules.bottom_right and variant.get("keys", 1.0) != 1.0:
        raise Unsupported("flash-attn aligns causal attention at the bottom right, not at the top left")
    options = {"causal": rules.causal, "softcap": rules.softcap}
    options["window_size"] = (rules.window - 1, 0) if rules.window else (-1, -1)

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q, k, v = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))  # [b, s, h, d]
        if "cu_seqlens" not in inputs:
            return {"output": flash_attn_func(q, k, v, **options).transpose(1, 2)}
        ends = inputs["cu_seqlens"]
        longest = int(ends.diff().max())
        q, k, v = (x.squeeze(0) for x in (q, k, v))  # [tokens, h, d]
        output = flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, **options)
        return {"output": output.unsqueeze(0).transpose(1, 2)}

    return attention
