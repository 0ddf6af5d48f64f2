"""DeepGEMM: its casts to 1×128 and 128×128 tiles with scales that are powers of two, and fp8_gemm_nt for all three
products. It multiplies by 1 / s. The gradient of the weight has 1×128 tiles on both sides; on GPUs of compute
capability 9.0 that kernel adds to a float32 matrix."""

from collections.abc import Mapping
from typing import Any

import deep_gemm
import torch
from deep_gemm.utils import per_block_cast_to_fp8, per_token_cast_to_fp8
from torch import Tensor

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.fp8.problem import SEEN, activation

TILE = 128


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Any:
        x_q, w_q = per_token_cast_to_fp8(x, use_ue8m0=True), per_block_cast_to_fp8(w, use_ue8m0=True)
        y = x.new_empty(len(x), len(w))
        deep_gemm.fp8_gemm_nt(x_q, w_q, y)
        ctx.save_for_backward(*x_q, *w_q)
        seen = (x_q[0].view(torch.uint8), 1 / x_q[1], w_q[0].view(torch.uint8), 1 / w_q[1])
        ctx.mark_non_differentiable(*seen)
        return y, *seen

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> Any:
        x_codes, x_scales, w_codes, w_scales = ctx.saved_tensors
        dx = dy.new_empty(len(dy), w_codes.shape[1])
        w_t = w_codes.t().contiguous(), w_scales.t().contiguous()
        deep_gemm.fp8_gemm_nt(per_token_cast_to_fp8(dy.contiguous(), use_ue8m0=True), w_t, dx)
        x_hat = x_codes.float() * x_scales.repeat_interleave(TILE, 1)
        x_t, dy_t = (per_token_cast_to_fp8(each.t().contiguous(), use_ue8m0=True) for each in (x_hat, dy))
        dw = torch.zeros(len(w_codes), w_codes.shape[1], dtype=torch.float32, device=dy.device)
        deep_gemm.fp8_gemm_nt(dy_t, x_t, dw, c=dw, recipe=(1, 1, TILE))
        return dx, dw.to(dy.dtype)


def build(workload: Workload, topology: Topology, scaling: str, gradients: str) -> Function:
    if workload.dtype != "bf16":
        raise Unsupported(f"DeepGEMM's 1×128 by 128×128 product writes bfloat16, not {workload.dtype}")
    sizes = workload.tokens, workload.model.hidden_size, workload.model.intermediate_size
    if odd := [size for size in sizes if size % TILE]:
        raise Unsupported(f"DeepGEMM takes multiples of {TILE}, not {', '.join(map(str, odd))}")

    def linear(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = activation(inputs["x"])
        y, *seen = Linear.apply(x.flatten(0, -2), inputs["weight"])
        return {"output": y.unflatten(0, x.shape[:-1]), **dict(zip(SEEN, seen, strict=True))}

    return linear
