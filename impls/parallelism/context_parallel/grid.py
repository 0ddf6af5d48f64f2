"""The work of this topic: attention whose arithmetic outweighs its calls, at a length that is not a multiple of a
tile."""

from harness.spec import Grid, Row

GRID = Grid(rows=(Row("long", "fp32", True), Row("long", "bf16", True), Row("sharp", "fp32", True)), timed=("long",))
