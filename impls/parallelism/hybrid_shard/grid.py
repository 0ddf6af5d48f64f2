"""The work of this topic: four micro-batches, of which MiCS sends only the sum across groups; uneven sizes and tied
weights."""

from harness.spec import Grid, Row

GRID = Grid(
    rows=(
        Row("accumulated", "fp32", True),
        Row("accumulated", "bf16", False),
        Row("thorough", "fp32", False),
        Row("thorough", "bf16", False),
        Row("uneven_tied", "fp32", True),
    ),
    timed=("accumulated",),
)
