"""The work of this topic: five rows per micro-batch, whose halves differ by one; sequences that no rank count
divides."""

from harness.spec import Grid, ModelConfig, Row, Workload

# As many key/value heads as query heads, since DeepSpeed's Domino supports no other attention.
HALVES = Workload(
    "halves",
    ModelConfig(num_key_value_heads=8),
    batch_size=10,
    micro_batches=2,
    sequence_length=32,
)
GROUPED = HALVES.with_(name="grouped", model=ModelConfig(), optimizer="adamw", lr=1e-3, eps=1e-6)
GRID = Grid(
    rows=(
        Row("thorough", "fp32", False),
        Row(HALVES, "fp32", False),
        Row(GROUPED, "bf16", False),
        Row("uneven_tied", "fp32", True),
    ),
    timed=("halves",),
)
