"""A model's sizes as arguments of Hugging Face's Qwen3Config and Qwen3MoeConfig."""

from collections.abc import Mapping
from typing import Any

from impls.analysis.bottleneck.sizes import DENSE, EXPERTS


def fields(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Every layer of a model with experts has them."""
    names = DENSE + EXPERTS if "num_experts" in sizes else DENSE
    given = {name: sizes[name] for name in names} | {"tie_word_embeddings": bool(sizes["tie_word_embeddings"])}
    return given | ({"decoder_sparse_step": 1, "mlp_only_layers": []} if "num_experts" in sizes else {})
