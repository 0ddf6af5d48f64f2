"""The work of this topic: four micro-batches, of sequences of one length and of many."""

from harness.spec import Grid, Row

GRID = Grid(
    rows=(
        Row("thorough", "fp32", True, ("accumulate_tokens",)),
        Row("unlabelled", "fp32", True, ("accumulate_tokens",)),
        Row("accumulated", "fp32", True),
        Row("accumulated", "bf16", False),
        Row("unequal", "fp32", True),
        Row("unequal", "bf16", False),
    ),
    timed=("accumulated",),
    timed_on=("dp2",),
)
