"""A workload's model as numbers, and back."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.spec import ModelConfig, MoeConfig, Workload
from impls.common.features import qwen3_alone

DENSE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
GATED, UNGATED = 3, 2  # matrices of an MLP: SwiGLU's gate, up and down; or up and down alone


def numbers(workload: Workload) -> dict[str, int]:
    """The sizes of the model and of the global batch, by the names of Hugging Face's configs."""
    qwen3_alone(workload, "the count of FLOPs is that of Qwen3's decoder; it", "rope_scaling")
    names = DENSE + (EXPERTS if isinstance(workload.model, MoeConfig) else ())
    every = asdict(workload.model)
    sizes = {name: int(every[name]) for name in names}
    batch = {"batch_size": workload.batch_size, "sequence_length": workload.sequence_length}
    return {**sizes, **batch, "mlp_matrices": GATED}


def config(sizes: Mapping[str, Any]) -> ModelConfig:
    """The model of these numbers."""
    kind, names = (MoeConfig, DENSE + EXPERTS) if "num_experts" in sizes else (ModelConfig, DENSE)
    return kind(**{name: bool(sizes[name]) if name.startswith("tie") else sizes[name] for name in names})
