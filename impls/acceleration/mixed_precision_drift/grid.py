"""The work of this topic: most updates are below half a unit in a bfloat16 weight's last place, at so small a rate."""

from harness.spec import Grid, ModelConfig, Row, Workload

DRIFT = Workload(
    "drift",
    ModelConfig(vocab_size=32, hidden_size=32, intermediate_size=64),
    batch_size=32,
    sequence_length=3,
    optimizer="adamw",
    lr=3e-4,
    steps=300,
)
NARROW = ("drift_masters", "drift_bf16", "drift_stochastic")

GRID = Grid(rows=(Row(DRIFT, "fp32", True, ("drift_fp32",)), Row(DRIFT, "bf16", True, NARROW)), timed=())
