"""The work of this topic: four layers for two stages, micro-batches enough to fill them, a tied embedding that both
stages hold, sequences of unequal length, and a threshold that clips every step."""

from harness.spec import ModelConfig, Workload

MESHED = Workload(
    "meshed",
    ModelConfig(vocab_size=128, num_hidden_layers=4, tie_word_embeddings=True),
    batch_size=16,
    micro_batches=4,
    min_length=4,
    optimizer="adamw",
    lr=1e-3,
    eps=1e-6,
    max_grad_norm=0.5,
)
GRID = ((MESHED, "fp32", True), (MESHED, "bf16", True))
TIMED = ("meshed",)
