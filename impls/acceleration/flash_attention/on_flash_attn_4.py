"""flash-attn 4 (Dao-AILab, CuTe-DSL): as flash-attn 2, with learnable sinks. It also returns L."""

from collections.abc import Mapping
from typing import Any

from flash_attn.cute import flash_attn_func, flash_attn_varlen_func
from torch import Tensor

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_attention.rules import Rules


def build(workload: Workload, topology: Topology, **variant: Any) -> Function:
    rules = Rules.of(**variant)
    if workload.dtype != "bf16":
        raise Unsupported(f"flash-attn-4 takes fp16 and bf16, not {workload.dtype}")
    if rules.causal and not rules.bottom_right and variant.get("keys", 1.0) != 1.0:
        raise Unsupported("flash-attn-4 aligns causal attention at the bottom right, not at the top left")
    window = (rules.window - 1, 0) if rules.window else (None, None)
    options = {"causal": rules.causal, "softcap": rules.softcap, "window_size": window}

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q, k, v = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))  # [b, s, h, d]
        sinks = {"learnable_sink": inputs.get("sinks")}
        if "cu_seqlens" not in inputs:
            return {"output": flash_attn_func(q, k, v, **options, **sinks)[0].transpose(1, 2)}
        ends = inputs["cu_seqlens"]
        longest = int(ends.diff().max())
        q, k, v = (x.squeeze(0) for x in (q, k, v))  # [tokens, h, d]
        output, _ = flash_attn_varlen_func(
            q, k, v, cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=longest, max_seqlen_k=longest,
            **options, **sinks,
        )  # fmt: skip
        return {"output": output.unsqueeze(0).transpose(1, 2)}

    return attention
