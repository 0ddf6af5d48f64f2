"""The work of this topic: plain SGD shows wiring; AdamW has states to move, with matrices large enough for DeepSpeed to
move them (at least 1 MiB)."""

from harness.spec import Grid, ModelConfig, Row, Workload

_BLOCKS = Workload(
    "blocks",
    ModelConfig(
        vocab_size=768,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=64,
    ),
    batch_size=4,
    sequence_length=16,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.1,
    eps=1e-6,
)
GRID = Grid(
    rows=(
        Row("thorough", "fp32", True),
        Row("thorough", "bf16", False),
        Row("uneven_tied", "fp32", False),
        Row(_BLOCKS, "fp32", True),
        Row(_BLOCKS, "bf16", True),
    ),
    timed=("blocks",),
    timed_on=("dp2",),
)
