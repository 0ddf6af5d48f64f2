"""The work of this topic: a layer on a few hundred tokens, with even and odd sizes."""

from harness.spec import Grid, Row

GRID = Grid(
    rows=(
        Row("tiny", "fp32", True),
        Row("tiny", "bf16", False),
        Row("uneven", "fp32", False),
        Row("scarce", "fp32", True),
    ),
    timed=("tiny",),
    timed_on=("dp2ep2",),
)
