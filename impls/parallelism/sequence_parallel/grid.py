"""The work of this topic: sequences that every rank count divides and that none does, in both precisions."""

from harness.spec import Grid, Row

GRID = Grid(
    rows=(
        Row("tiny", "fp32", True),
        Row("thorough", "fp32", False),
        Row("thorough", "bf16", False),
        Row("uneven_tied", "fp32", True),
    ),
    timed=("tiny",),
)
