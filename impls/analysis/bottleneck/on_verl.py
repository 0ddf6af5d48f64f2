"""verl's FlopsCounter, from which its trainers log MFU: 6 a parameter and token, and attention with half of the pairs.

It tells FLOP/s in units of 1e12, as a float, so that only counts below 2⁵² can be compared to the last digit.
"""

from collections.abc import Mapping
from math import inf
from typing import Any
from unittest.mock import patch

from transformers import Qwen3Config, Qwen3MoeConfig
from verl.utils import flops_counter

from harness.spec import Function, Topology, Unsupported, Workload
from impls.analysis.bottleneck.hugging import fields


def build(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    def flops(sizes: Mapping[str, Any]) -> dict[str, int]:
        config = (Qwen3MoeConfig if "num_experts" in sizes else Qwen3Config)(**fields(sizes))
        lengths = [sizes["sequence_length"]] * sizes["batch_size"]
        with patch.object(flops_counter, "get_device_flops", lambda: inf):  # it asks CUDA for the device's name
            tera, _ = flops_counter.FlopsCounter(config).estimate_flops(lengths, delta_time=1.0)
        if tera * 1e12 >= 2**52:
            raise Unsupported(f"verl tells {tera:,.0f}e12 FLOPs as a float, which has too few digits")
        return {"total": round(tera * 1e12)}

    return flops
