"""Transformer Engine's DotProductAttention, which chooses flash-attn, cuDNN or its own unfused attention. Its mask type
names the corner, and a window of (left, right) counts the keys beside the query's own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformer_engine.pytorch import DotProductAttention

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_attention.rules import Rules


def build(workload: Workload, topology: Topology, **variant: Any) -> Function:
    model, rules = workload.model, Rules.of(**variant)
    packed, sinks = variant.get("packed", False), variant.get("sinks", False)
    if workload.dtype != "bf16":
        raise Unsupported(f"Transformer Engine's fused attention takes fp16 and bf16, not {workload.dtype}")
    if rules.softcap:
        raise Unsupported("Transformer Engine's DotProductAttention has no capped scores")
    mask = "no_mask"
    if rules.causal:
        mask = "causal_bottom_right" if rules.bottom_right else "causal"
    attend = DotProductAttention(
        model.num_attention_heads,
        model.head_dim,
        num_gqa_groups=model.num_key_value_heads,
        attention_dropout=0.0,
        qkv_format="thd" if packed else "bshd",
        attn_mask_type="padding_causal" if packed else mask,
        window_size=(rules.window - 1, 0) if rules.window else None,
        attention_type="self" if variant.get("keys", 1.0) == 1.0 else "cross",
        softmax_type="learnable" if sinks else "vanilla",
    )

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q, k, v = (inputs[name].transpose(1, 2) for name in ("query", "key", "value"))  # [b, s, h, d]
        if not packed:
            # Its sinks are float32, whatever the precision of the rest.
            weights = {"softmax_offset": inputs["sinks"].to(torch.float32)} if sinks else {}
            output = functional_call(attend, weights, tuple(x.contiguous() for x in (q, k, v)))
            return {"output": output.unflatten(-1, (-1, q.shape[-1])).transpose(1, 2)}
        ends = inputs["cu_seqlens"]
        longest = int(ends.diff().max())
        output = attend(
            *(x.squeeze(0).contiguous() for x in (q, k, v)),  # [tokens, h, d]
            cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=longest, max_seqlen_kv=longest,
        )  # fmt: skip
        return {"output": output.unflatten(-1, (-1, q.shape[-1])).unsqueeze(0).transpose(1, 2)}

    return attention
