"""Model FLOPs of a step equal the sum over its matrix products."""

import pytest

from harness.meter.flops import matmul_ceiling, step_flops
from harness.spec import ModelConfig, MoeConfig, Workload
from harness.spec.named import NAMED


def by_products(work: Workload) -> int:
    """2·m·n·k for each product of the forward pass, three times that with the backward pass."""
    model, tokens = work.model, work.tokens
    h, d, f = model.hidden_size, model.head_dim, model.intermediate_size
    router = 0
    if isinstance(model, MoeConfig):
        f, router = model.num_experts_per_tok * model.moe_intermediate_size, 2 * tokens * h * model.num_experts
    q, kv = model.num_attention_heads * d, model.num_key_value_heads * d
    projections = 2 * tokens * (h * q + 2 * h * kv + q * h + 3 * h * f)
    scores = 2 * 2 * tokens * work.sequence_length * q // 2  # QKᵀ and PV, half of them masked
    head = 2 * tokens * h * model.vocab_size
    return 3 * (model.num_hidden_layers * (projections + router + scores) + head)


@pytest.mark.parametrize("name", NAMED)
def test_step_flops_are_those_of_the_products(name: str) -> None:
    assert step_flops(NAMED[name]) == by_products(NAMED[name])


def test_tying_the_embeddings_changes_no_product() -> None:
    tied, untied = (Workload(model=ModelConfig(tie_word_embeddings=tie)) for tie in (True, False))
    assert step_flops(tied) == step_flops(untied)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_ceiling_is_a_rate_that_this_machine_has(dtype: str) -> None:
    assert 1e8 < matmul_ceiling(dtype) < 1e14
