"""FlashAttention-2 in Triton (kernels.py): the fast engine of this project, as reference.py is the readable one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.flash_attention import kernels
from impls.acceleration.flash_attention.rules import Rules

LOG2_E = 1.4426950408889634


class Blocks(NamedTuple):
    """Rows and columns of a tile, warps of a program, and stages of its loop's pipeline."""

    rows: int
    columns: int
    warps: int
    stages: int


def forward_blocks(width: int, element_size: int) -> Blocks:
    """Tiles that fit into 227 KiB of shared memory with the stages of K and V."""
    if element_size == 4:
        return Blocks(64, 32, 4, 2)
    return Blocks(128, 128, 8, 3) if width <= 64 else Blocks(128, 64, 8, 3) if width <= 128 else Blocks(128, 32, 8, 2)


def backward_blocks(width: int, element_size: int) -> Blocks:
    if element_size == 4:
        return Blocks(32, 32, 4, 1)
    return Blocks(64, 128, 8, 2) if width <= 64 else Blocks(64, 64, 8, 2) if width <= 128 else Blocks(32, 32, 4, 1)


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, rules: Rules, sinks: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """query [b, h, s, d], key and value [b, h_k, t, d], sinks [h], cu_seqlens [documents + 1] → [b, h, s, d]."""
        query, key, value = (x.contiguous() for x in (query, key, value))
        b, h, s, d = query.shape
        output, lse = torch.empty_like(query), query.new_empty((b, h, s), dtype=torch.float32)
        each = forward_blocks(d, query.element_size())
        common = _common(rules, query, key, cu_seqlens)
        longest, documents = _documents(s, cu_seqlens)
        kernels.forward[triton.cdiv(longest, each.rows), b * h, documents](
            query, key, value, output, lse, query if sinks is None else sinks, *common.tensors, h, **common.options,
            B_R=each.rows, B_C=each.columns, HAS_SINKS=sinks is not None, num_warps=each.warps, num_stages=each.stages,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, output, lse, sinks, cu_seqlens)
        ctx.rules = rules
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse, sinks, cu_seqlens = ctx.saved_tensors
        d_output = d_output.contiguous()
        (b, h, s, d), t = query.shape, key.shape[2]
        dq, dk, dv, delta = (torch.empty_like(x) for x in (query, key, value, lse))
        each = backward_blocks(d, query.element_size())
        launch = {"num_warps": each.warps, "num_stages": each.stages}
        kernels.row_products[(triton.cdiv(b * h * s, 64),)](d_output, output, delta, b * h * s, D=d, B_R=64)
        common = _common(ctx.rules, query, key, cu_seqlens)
        inputs, (longest, documents) = (query, key, value, d_output, lse, delta), _documents(s, cu_seqlens)
        longest_keys = longest if cu_seqlens is not None else t
        kernels.backward_keys[triton.cdiv(longest_keys, each.columns), b * key.shape[1], documents](
            *inputs, dk, dv, *common.tensors, **common.options, B_R=each.rows, B_C=each.columns, **launch
        )
        kernels.backward_queries[triton.cdiv(longest, each.rows), b * h, documents](
            *inputs, dq, *common.tensors, **common.options, B_R=each.rows, B_C=each.columns, **launch
        )
        d_sinks = None
        if sinks is not None:
            p = (sinks.float()[:, None] * LOG2_E - lse).exp2()  # [b, h, s]
            d_sinks = -(p * delta).sum((0, 2)).to(sinks.dtype)
        return dq, dk, dv, None, d_sinks, None


class Common(NamedTuple):
    tensors: tuple[Any, ...]
    options: dict[str, Any]


def _common(rules: Rules, query: Tensor, key: Tensor, cu_seqlens: Tensor | None) -> Common:
    """The arguments that all kernels share."""
    (h, s, d), t = query.shape[1:], key.shape[2]
    packed = cu_seqlens is not None
    shift = 0 if packed else rules.mask(s, t).shift
    options = {"CAUSAL": rules.causal, "WINDOW": rules.window, "CAP": rules.softcap, "PACKED": packed}
    options |= {"D": d, "G": h // key.shape[1]}
    return Common((cu_seqlens if packed else query, s, t, shift, d**-0.5), options)


def _documents(s: int, cu_seqlens: Tensor | None) -> tuple[int, int]:
    """The length of the longest document, and their number."""
    return (s, 1) if cu_seqlens is None else (int(cu_seqlens.diff().max()), len(cu_seqlens) - 1)


def build(workload: Workload, topology: Topology, **variant: Any) -> Function:
    rules, width = Rules.of(**variant), workload.model.head_dim
    if workload.dtype == "fp64" or width not in (16, 32, 64, 128, 256):
        raise Unsupported(f"the kernels take fp32 and bf16 and widths of 16 to 256, not {workload.dtype} and {width}")

    def attention(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = inputs["query"], inputs["key"], inputs["value"]
        return {"output": Attention.apply(*tensors, rules, inputs.get("sinks"), inputs.get("cu_seqlens"))}

    return attention
