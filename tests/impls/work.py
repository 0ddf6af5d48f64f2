"""Workloads for several topics."""

from harness.spec import ModelConfig, Workload

# Odd sizes, tied embeddings, two micro-batches. With so large an epsilon AdamW's step is nearly linear in the gradient,
# so a wrong norm is visible.
CLIPPED = Workload(
    "clipped",
    ModelConfig(97, 23, 41, 2, 2, 1, 6, tie_word_embeddings=True),  # no unit's number of elements is a multiple of four
    micro_batches=2,
    sequence_length=11,
    optimizer="adamw",
    lr=1.0,
    eps=1.0,
    weight_decay=0.1,
    max_grad_norm=0.3,
)
