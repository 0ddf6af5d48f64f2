"""bitsandbytes' ``quantize_4bit`` and ``dequantize_4bit``, which Linear4bit is made of, and ``int8_vectorwise_quant``
with its inverse, of Linear8bitLt."""

from collections.abc import Mapping
from typing import Any

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

from harness.spec import Function, Topology, Unsupported, Workload

BLOCK = 64


def eight(whole: Tensor) -> dict[str, Any]:
    codes, scales, _ = bnb.int8_vectorwise_quant(whole)
    back = bnb.int8_vectorwise_dequant(codes, scales).to(whole.dtype)
    bits = 8 * (codes.nbytes + scales.nbytes) / whole.numel()
    return {"codes": codes.long().flatten(), "scales": scales, "W": back, "bits": bits}


def build(
    workload: Workload,
    topology: Topology,
    normal: bool = True,
    double: bool = False,
    int8: bool = False,
    **drawn: bool,
) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("bitsandbytes stores float32, float16 and bfloat16")
    kind = "nf4" if normal else "fp4"

    def store(inputs: Mapping[str, Any]) -> dict[str, Any]:
        whole = inputs["W"]
        if int8:
            return eight(whole)
        packed, state = bnb.quantize_4bit(whole, blocksize=BLOCK, compress_statistics=double, quant_type=kind)
        codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), 1).flatten()[: whole.numel()].long()
        if not normal:  # its table is not sorted, and has two zeros
            codes = torch.searchsorted(state.code.unique(), state.code)[codes]
        scales, held = state.absmax, [packed, state.absmax]
        if double:
            scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
            held.append(state.state2.absmax)
        back = bnb.dequantize_4bit(packed, state)
        # An odd number of weights leaves half a byte, which the paper does not count.
        bits = 8 * sum(tensor.nbytes for tensor in held) - 4 * (whole.numel() % 2)
        return {"codes": codes, "scales": scales, "W": back, "bits": bits / whole.numel()}

    return store
