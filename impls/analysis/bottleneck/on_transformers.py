"""Transformers' ``Trainer.floating_point_ops``, whose sum over steps a training run logs as ``total_flos``.

It is 6 · tokens · ``num_parameters(exclude_embeddings=True)``, and needs nothing of a trainer but its model.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer

from harness.spec import Function, Topology, Workload
from impls.analysis.bottleneck.hugging import fields


def build(workload: Workload, topology: Topology, count: str, parts: bool) -> Function:
    def flops(sizes: Mapping[str, Any]) -> dict[str, int]:
        moe = "num_experts" in sizes
        with torch.device("meta"):
            model = (
                Qwen3MoeForCausalLM(Qwen3MoeConfig(**fields(sizes)))
                if moe
                else Qwen3ForCausalLM(Qwen3Config(**fields(sizes)))
            )
        trainer: Any = SimpleNamespace(model=model)
        ids = torch.empty(sizes["batch_size"], sizes["sequence_length"], device="meta", dtype=torch.long)
        return {"total": Trainer.floating_point_ops(trainer, {"input_ids": ids})}

    return flops
