"""The work of this topic: attention at a length at which it outweighs the calls; of no multiple of a tile."""

from harness.spec import Grid, Row

GRID = Grid(rows=(Row("long", "fp32", True), Row("long", "bf16", False)), timed=("long",))
