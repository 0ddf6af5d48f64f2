"""The work of this topic."""

from harness.spec import Grid, Row

GRID = Grid(
    rows=(
        Row("thorough", "fp32", True),
        Row("thorough", "bf16", False),
        Row("tiny", "fp32", False, full=True),
        Row("tiny", "bf16", False, full=True),
        Row("tiny_adamw", "fp32", False, full=True),
        Row("tiny_adamw", "bf16", False, full=True),
        Row("uneven_tied", "fp32", ("dp1",)),
    ),
    timed=("thorough",),
    timed_on=("dp2",),
    large=("medium",),
)
