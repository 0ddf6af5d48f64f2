"""The work of this topic; in float64 every rounding decision is certain (reference.py)."""

from harness.spec import Grid, Row

GRID = Grid(
    rows=(Row("tiny", "fp32", False), Row("tiny_adamw", "bf16", True), Row("uneven_tied", "fp64", True)),
    timed=("tiny",),
)
