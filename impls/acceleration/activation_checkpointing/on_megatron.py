"""Megatron-Core's own recomputation in its GPTModel: full in uniform segments or in a block of single layers, and
selective."""

import torch

from harness.spec import Topology, Workload
from impls.acceleration.activation_checkpointing.cuts import length
from impls.engines.megatron.gpt import Gpt


def build(
    workload: Workload, topology: Topology, each: int | str = 0, attention_alone: bool = False, method: str = "uniform"
) -> Gpt:
    changes: dict[str, object] = {}
    if attention_alone:
        changes = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    elif each:
        layers = workload.model.num_hidden_layers
        number = length(layers, each) if method == "uniform" else layers
        changes = {"recompute_granularity": "full", "recompute_method": method, "recompute_num_layers": number}
    trainer = Gpt(workload, topology, **changes)
    torch.manual_seed(workload.seed)  # every variant drops the same elements
    return trainer


def build_block(workload: Workload, topology: Topology, each: int | str = 0) -> Gpt:
    """Each of the first layers alone, here all of them."""
    return build(workload, topology, each, method="block")
