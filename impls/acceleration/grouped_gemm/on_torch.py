"""PyTorch's torch.nn.functional.grouped_mm.

It takes equal groups and groups that follow one another, in float32, bfloat16 and float16, with strides that are
multiples of 16 bytes. It has no count of valid rows. Its scaled form, scaled_grouped_mm, takes one scale a row or
MXFP8's, not blocks of 128 × 128.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.grouped_gemm.sizes import sizes

ALIGNMENT = 16  # bytes


def build(workload: Workload, topology: Topology, layout: str, scaled: bool) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("grouped_mm takes float32, bfloat16 and float16, not float64")
    size = sizes(workload, layout)
    if (size.n * workload.element_size) % ALIGNMENT or (size.k * workload.element_size) % ALIGNMENT:
        raise Unsupported(f"grouped_mm takes rows of a multiple of {ALIGNMENT} bytes, not n = {size.n}, k = {size.k}")

    def product(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w = inputs["x"], inputs["w"].mT
        if layout == "dense":
            return {"y": grouped_mm(x, w)}
        return {"y": grouped_mm(x, w, offs=inputs["sizes"].cumsum(0, dtype=torch.int32))}

    return product
