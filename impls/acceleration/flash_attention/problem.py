"""Attention over queries, keys and values drawn from a normal distribution, as after query and key norms."""

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.spec import Workload
from impls.acceleration.flash_attention.reference import naive


def draw(workload: Workload, causal: bool) -> dict[str, Tensor]:
    """query [batch, heads, sequence, head_dim], key and value [batch, kv_heads, sequence, head_dim]; all float64,
    all differentiated. The same for every variant."""
    model, generator = workload.model, torch.Generator().manual_seed(workload.seed)
    heads = {"query": model.num_attention_heads, "key": model.num_key_value_heads, "value": model.num_key_value_heads}
    sizes = {name: (workload.batch_size, n, workload.sequence_length, model.head_dim) for name, n in heads.items()}
    inputs = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    for name in ("query", "key"):
        inputs[name] *= workload.input_scale
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def plain(inputs: Mapping[str, Tensor], causal: bool) -> dict[str, Tensor]:
    """softmax(QKᵀ/√d) V, with the whole matrix written to memory (Vaswani et al. 2017, equation 1)."""
    return {"output": naive(inputs["query"], inputs["key"], inputs["value"], causal)}
