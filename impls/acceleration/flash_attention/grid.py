"""The work of this topic: a length that is not a multiple of a tile, in both precisions, and scores so large that exp
overflows."""

from harness.spec import Grid, Row

GRID = Grid(
    rows=(Row("long", "fp32", True), Row("long", "bf16", True), Row("sharp", "fp32", True)),
    timed=("long",),
)
