"""xFormers' decoding: memory_efficient_attention_forward with its split-KV operator in Triton.

It takes all sequences as one, [1, b·n, h_k, g, d], and their lengths in the mask."""

from collections.abc import Mapping

from torch import Tensor
from xformers.ops import fmha
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalWithOffsetPaddedKeysMask

from harness.spec import Function, Topology, Unsupported, Workload


def build(workload: Workload, topology: Topology, queries: int, unified: bool, paged: bool) -> Function:
    if workload.dtype != "bf16":
        raise Unsupported(f"xFormers' split-KV operator takes bf16 and fp16, not {workload.dtype}")

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        heads, (b, capacity, h_k, _) = query.shape[2], key.shape
        q = query.flatten(0, 1).unflatten(1, (h_k, -1))[None]
        k, v = (x.flatten(0, 1)[None, :, :, None].expand(-1, -1, -1, heads // h_k, -1) for x in (key, value))
        visible = BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            q_seqlen=[queries] * b, kv_padding=capacity, kv_seqlen=inputs["lengths"].tolist(), device=q.device
        )
        output = fmha.memory_efficient_attention_forward(q, k, v, visible, op=fmha.triton_splitk.FwOp)
        return {"output": output.view_as(query)}

    return decode
