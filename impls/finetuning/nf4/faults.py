"""Four-bit storage with exactly one thing broken."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import EXACT, OUTPUT, Fault
from impls.finetuning.nf4 import SCALES, reference


def block_off_by_one(workload: Workload, topology: Topology, **variant: bool) -> Function:
    """Each weight is scaled back by the scale of the block before the next one."""
    honest = reference.dequantise

    def dequantise(codes: Tensor, largest: Tensor, values: Tensor, block: int) -> Tensor:
        return honest(codes, largest.roll(1) if block == reference.BLOCK else largest, values, block)

    reference.dequantise = dequantise
    return reference.build(workload, topology, **variant)


def offset_dropped(workload: Workload, topology: Topology, **variant: bool) -> Function:
    """The mean of the scales is taken out and not added again."""
    honest = reference.dequantise

    def build(inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = reference.build(workload, topology, **variant)(inputs)
        largest = reference.quantise(inputs["W"].flatten().float(), reference.normal_float(), reference.BLOCK)[1]
        scales = found["scales"] - largest.mean()
        back = honest(found["codes"], scales, reference.normal_float(), reference.BLOCK)
        return {**found, "scales": scales, "W": back.view_as(inputs["W"]).to(inputs["W"].dtype)}

    return build


def quantiles_without_zero(workload: Workload, topology: Topology, **variant: bool) -> Function:
    """Sixteen evenly spaced quantiles, symmetric, so that 0 has no code."""

    def values() -> Tensor:
        found = torch.special.ndtri(torch.linspace(1 - reference.LAST, reference.LAST, 16))
        return found / found.max()

    reference.normal_float = values
    return reference.build(workload, topology, **variant)


def rounded_down(workload: Workload, topology: Topology, **variant: bool) -> Function:
    """The next smaller value in place of the nearest."""
    honest = reference.quantise

    def quantise(x: Tensor, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
        if block != reference.BLOCK:
            return honest(x, values, block)
        blocks = torch.nn.functional.pad(x, (0, -len(x) % block)).view(-1, block)
        largest = blocks.abs().amax(1)
        scaled = blocks * (1 / largest.clamp(min=1e-38))[:, None]
        codes = (torch.bucketize(scaled, values, right=True) - 1).clamp(0)
        return codes.flatten()[: len(x)], largest

    reference.quantise = quantise
    return reference.build(workload, topology, **variant)


def scaled_by_128(workload: Workload, topology: Topology, **variant: bool) -> Function:
    """Eight bits: weights are scaled back by 1/128 of the row's largest."""

    def build(inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = reference.build(workload, topology, **variant)(inputs)
        return {**found, "W": (found["W"].float() * (127 / 128)).to(found["W"].dtype)}

    return build


FOUND = {"parity": {"fp32": OUTPUT | EXACT}}
FAULTS = {
    "block_off_by_one": Fault("nf4_single", "dp1", {"parity": {"fp32": OUTPUT}}, workload=SCALES),
    "offset_dropped": Fault("nf4_double", "dp1", FOUND, workload=SCALES),
    "quantiles_without_zero": Fault("nf4_single", "dp1", FOUND, workload=SCALES),
    "scaled_by_128": Fault("int8_rows", "dp1", {"parity": {"fp32": OUTPUT}}, workload=SCALES),
    "rounded_down": Fault("nf4_single", "dp1", FOUND, workload=SCALES),
}
