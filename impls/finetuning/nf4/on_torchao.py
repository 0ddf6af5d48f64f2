"""torchao's NF4Tensor, always with double quantisation: scales are whole numbers of eight bits with a factor for each
256 of them, in the weights' precision, as is a table of four digits."""

from collections.abc import Mapping
from typing import Any

import torch
from torchao.quantization import NF4Tensor

from harness.spec import Function, Topology, Workload
from impls.finetuning.nf4.reference import BLOCK, SCALES


def build(workload: Workload, topology: Topology, **variant: bool) -> Function:
    def store(inputs: Mapping[str, Any]) -> dict[str, Any]:
        packed = NF4Tensor.from_tensor(inputs["W"], BLOCK, SCALES)
        codes = torch.stack((packed.quantized_data >> 4, packed.quantized_data & 15), 1).flatten().long()
        scales = packed.dequantize_scalers(packed.quantized_scalers, packed.quantization_factor, SCALES)
        held = packed.quantized_data, packed.quantized_scalers, packed.quantization_factor
        bits = 8 * sum(tensor.nbytes for tensor in held) / codes.numel()
        return {"codes": codes, "scales": scales.float(), "W": packed.get_original_weight(), "bits": bits}

    return store
