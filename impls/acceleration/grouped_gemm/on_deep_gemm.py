"""DeepSeek's DeepGEMM.

Groups that follow one another must each begin at a multiple of its alignment (128 on Hopper), so their rows are copied
into a padded matrix, which is part of the cost; a router would write them there at once. Its products of bfloat16 have
a backward pass: dx with the groups along the rows, dw with the groups along the sum (float32). Equal groups are masked
ones that are full.
"""

from collections.abc import Mapping
from itertools import accumulate

import deep_gemm
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.grouped_gemm.problem import E4M3


class Padded:
    """Where each row goes, if every group begins at a multiple of the alignment."""

    def __init__(self, sizes: Tensor) -> None:
        each, step = sizes.tolist(), deep_gemm.get_mk_alignment_for_contiguous_layout()
        self.rows = [-(-size // step) * step for size in each]
        starts, kind = [0, *accumulate(self.rows)], {"dtype": torch.int32, "device": sizes.device}
        parts = [torch.arange(start, start + size) for start, size in zip(starts, each, strict=False)]
        self.place = torch.cat(parts).to(sizes.device)  # [M]
        self.group = torch.full((starts[-1],), -1, **kind)  # -1: padding
        self.group[self.place] = torch.repeat_interleave(torch.arange(len(each), **kind), sizes)
        self.sizes = torch.tensor(self.rows, **kind)

    def put(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(self.group), x.shape[1]).index_copy_(0, self.place, x)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, w: Tensor, sizes: Tensor) -> Tensor:
        there = Padded(sizes)
        y = x.new_empty(len(there.group), w.shape[1])
        deep_gemm.m_grouped_bf16_gemm_nt_contiguous(there.put(x), w, y, there.group)
        ctx.save_for_backward(x, w)
        ctx.there = there
        return y[there.place]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        (x, w), there = ctx.saved_tensors, ctx.there
        dy_there, dx = there.put(dy), x.new_empty(len(there.group), x.shape[1])
        deep_gemm.m_grouped_bf16_gemm_nn_contiguous(dy_there, w, dx, there.group)
        dw = torch.zeros_like(w, dtype=torch.float32)
        deep_gemm.k_grouped_bf16_gemm_tn_contiguous(dy_there, there.put(x), dw, there.rows, there.sizes, dw)
        return dx[there.place], dw.to(w.dtype), None


def build(workload: Workload, topology: Topology, layout: str, scaled: bool) -> Function:
    if workload.dtype != "bf16":
        raise Unsupported(f"DeepGEMM's grouped products give bf16, not {workload.dtype}")

    def product(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w, sizes = inputs["x"], inputs["w"], inputs["sizes"]
        if not scaled:
            return {"y": Product.apply(x, w, sizes)}
        w_scaled = (w.view(E4M3), inputs["w_scale"].float())
        if layout == "contiguous":
            there = Padded(sizes)
            y = inputs["x_scale"].new_empty(len(there.group), w.shape[1])
            x_scaled = (there.put(x).view(E4M3), there.put(inputs["x_scale"].float()))
            deep_gemm.m_grouped_fp8_gemm_nt_contiguous(x_scaled, w_scaled, y, there.group)
            return {"y": y[there.place]}
        y = inputs["x_scale"].new_zeros(*x.shape[:-1], w.shape[1])  # the kernel leaves rows beyond a size as they are
        expected = max(1, sum(sizes.tolist()) // len(sizes))
        x_scaled = (x.view(E4M3), inputs["x_scale"].float())
        deep_gemm.m_grouped_fp8_gemm_nt_masked(x_scaled, w_scaled, y, sizes, expected)
        return {"y": y}

    return product
