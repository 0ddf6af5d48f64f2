"""TRL's ``compute_flops_per_token``, from which its trainers log MFU: forward FLOPs by the config, times three."""

from collections.abc import Mapping
from typing import Any

from transformers import Qwen3Config, Qwen3MoeConfig
from trl.trainer.utils import compute_flops_per_token

from harness.spec import Function, Topology, Workload
from impls.analysis.bottleneck.hugging import fields


def build(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    def flops(sizes: Mapping[str, Any]) -> dict[str, int]:
        config = (Qwen3MoeConfig if "num_experts" in sizes else Qwen3Config)(**fields(sizes))
        tokens, length = sizes["batch_size"] * sizes["sequence_length"], sizes["sequence_length"]
        return {"total": tokens * compute_flops_per_token(config, length)}

    return flops
