"""The work of this topic: plain SGD shows wiring, AdamW in mixed precision what is moved, and blocks of over 1 MiB that
DeepSpeed moves to files at all."""

from harness.spec import ModelConfig, Workload

_BLOCKS = Workload(
    "blocks",
    ModelConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=2304,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    ),
    batch_size=4,
    sequence_length=16,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.1,
    eps=1e-6,
)
GRID = (
    ("uneven_tied", "fp32", True),
    ("tiny_adamw", "bf16", True),
    (_BLOCKS, "fp32", True),
    (_BLOCKS, "bf16", False),
)
TIMED = ("blocks",)
