"""Grouped products with exactly one thing broken."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.acceleration.grouped_gemm import reference
from impls.acceleration.grouped_gemm.grid import EXPERTS
from impls.acceleration.grouped_gemm.sizes import BLOCK


def group_offsets_off_by_one(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Each group but the first begins one row early, so that the last row of the group before has its weights."""
    right = reference.groups

    def early(inputs: Mapping[str, Tensor], layout: str) -> list[slice]:
        return [slice(max(rows.start - 1, 0), max(rows.stop - 1, 0)) for rows in right(inputs, layout)]

    reference.groups = early
    return reference.build(workload, topology, **variant)


def weight_scales_transposed(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The scales of w are read as [⌈k/128⌉, ⌈n/128⌉]."""
    product = reference.build(workload, topology, **variant)

    def transposed(inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        scale = inputs["w_scale"]
        return product({**inputs, "w_scale": scale.mT.reshape(scale.shape)})

    return transposed


def scales_of_the_previous_block(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """A partial sum is promoted with the scale of x for the 128 elements before."""
    product = reference.build(workload, topology, **variant)
    return lambda inputs: product({**inputs, "x_scale": inputs["x_scale"].roll(1, -1)})


def bits_read_as_e5m2(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The operands are taken for E5M2."""
    reference.E4M3 = torch.float8_e5m2
    return reference.build(workload, topology, **variant)


def partial_sums_in_bfloat16(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Sums of 128 products are rounded to bfloat16 before they are promoted; bfloat16 outputs hide it."""
    right = reference.scaled_product

    def rounded(x: Tensor, s: Tensor, w: Tensor, t: Tensor, rows: list[slice]) -> Tensor:
        total = torch.zeros_like(right(x, s, w, t, rows))
        for block in range(s.shape[1]):
            alone = s.clone()
            alone[:, :block] = alone[:, block + 1 :] = 0
            total += right(x, alone, w, t, rows).to(torch.bfloat16).to(total.dtype)
        return total

    reference.scaled_product = rounded
    return reference.build(workload, topology, **variant)


def a_rest_that_is_left_out(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Sums end with the last whole block of 128 columns of x."""
    right, k = reference.blocks, workload.model.hidden_size

    def whole(start: int, stop: int) -> Iterator[slice]:
        return right(start, stop // BLOCK * BLOCK if (start, stop) == (0, k) else stop)

    reference.blocks = whole
    return reference.build(workload, topology, **variant)


def rows_beyond_the_size(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The gradient of the weights sums over all rows that a group has room for."""
    right = reference.GroupedProduct.backward

    def backward(ctx: FunctionCtx, dy: Tensor) -> Any:
        room = len(ctx.saved_tensors[0]) // len(ctx.rows)
        d_x, _, none = right(ctx, dy)
        ctx.rows = [slice(rows.start, rows.start + room) for rows in ctx.rows]
        return d_x, right(ctx, dy)[1], none

    reference.GroupedProduct.backward = staticmethod(backward)
    return reference.build(workload, topology, **variant)


def an_empty_group_s_gradient_is_left_over(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The gradient of a group without rows is what the memory held: here, the gradient of the group before."""
    right = reference.GroupedProduct.backward

    def backward(ctx: FunctionCtx, dy: Tensor) -> Any:
        d_x, d_w, none = right(ctx, dy)
        for g, rows in enumerate(ctx.rows):
            if rows.start == rows.stop:
                d_w[g] = d_w[g - 1]
        return d_x, d_w, none

    reference.GroupedProduct.backward = staticmethod(backward)
    return reference.build(workload, topology, **variant)


class _Padding(torch.autograd.Function):
    """The identity, which keeps a copy with 128 more rows for each group."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x.new_zeros(len(x) + groups * BLOCK, x.shape[1]))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, dx: Tensor) -> tuple[Tensor, None]:
        return dx, None


def a_padded_copy_that_is_kept(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The rows, padded to multiples of 128, are kept for the backward pass beside the rows themselves."""
    product = reference.build(workload, topology, **variant)
    return lambda inputs: product({**inputs, "x": _Padding.apply(inputs["x"], len(inputs["w"]))})


OUTPUTS, GRADIENTS, NORM = {"fp32": OUTPUT, "bf16": OUTPUT}, {"fp32": GRADIENT, "bf16": GRADIENT}, frozenset({"output"})
ZERO = {"fp32": frozenset({"gradient"}), "bf16": frozenset({"gradient"})}  # where the truth is 0, there is no slope
BOTH = {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT | GRADIENT}

FAULTS = {
    "group_offsets_off_by_one": Fault("grouped_contiguous", "dp1", {"parity": BOTH}, "output of y", EXPERTS),
    "weight_scales_transposed": Fault("grouped_contiguous_scaled", "dp1", {"parity": OUTPUTS}, "output of y", EXPERTS),
    "scales_of_the_previous_block": Fault("grouped_masked_scaled", "dp1", {"parity": OUTPUTS}, "output of y", EXPERTS),
    "bits_read_as_e5m2": Fault("grouped_dense_scaled", "dp1", {"parity": OUTPUTS}, "output of y", EXPERTS),
    "partial_sums_in_bfloat16": Fault(
        "grouped_dense_scaled", "dp1", {"parity": {"fp32": NORM}}, "output of y", EXPERTS
    ),
    "a_rest_that_is_left_out": Fault("grouped_dense", "dp1", {"parity": BOTH}, "output of y", EXPERTS),
    "rows_beyond_the_size": Fault("grouped_masked", "dp1", {"parity": GRADIENTS}, "gradient of w", EXPERTS),
    "an_empty_group_s_gradient_is_left_over": Fault(
        "grouped_contiguous", "dp1", {"parity": ZERO}, "gradient of w", EXPERTS
    ),
    "a_padded_copy_that_is_kept": Fault("grouped_contiguous", "dp1", {"memory": {"fp32": {"saved"}}}, workload=EXPERTS),
}
