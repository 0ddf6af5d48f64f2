"""xFormers' memory_efficient_attention, which chooses among its own, CUTLASS's and flash-attn's kernels. Tensors are
[b, s, h, d]; a mask is an object that names its corner."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from xformers.ops import memory_efficient_attention
from xformers.ops.fmha import attn_bias

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_attention.rules import Rules


def build(workload: Workload, topology: Topology, **variant: Any) -> Function:
    rules = Rules.of(**variant)
    if rules.softcap or variant.get("sinks"):
        raise Unsupported("xFormers has neither capped scores nor sinks")
    if workload.dtype == "fp64":
        raise Unsupported("xFormers' kernels take fp16, bf16 and fp32, not fp64")

    def bias(inputs: Mapping[str, Tensor]) -> attn_bias.AttentionBias | None:
        if "cu_seqlens" in inputs:
            lengths, device = inputs["cu_seqlens"].diff().tolist(), inputs["query"].device
            return attn_bias.BlockDiagonalMask.from_seqlens(lengths, device=device).make_causal()
        if rules.window:
            return attn_bias.LowerTriangularFromBottomRightLocalAttentionMask(_window_size=rules.window)
        if rules.bottom_right:
            return attn_bias.LowerTriangularFromBottomRightMask()
        return attn_bias.LowerTriangularMask() if rules.causal else None

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        # Its backward kernels require as many key heads as query heads: the copies are part of its cost.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        try:
            output = memory_efficient_attention(*(x.transpose(1, 2) for x in (query, key, value)), bias(inputs))
        except NotImplementedError as why:  # it lists what each kernel lacks
            raise Unsupported(f"xFormers: {' '.join(str(why).split())[:200]}") from why
        return {"output": output.transpose(1, 2)}

    return attention
