"""The work of this topic: attention at a length at which it outweighs the calls; of no multiple of a tile."""

GRID = (("long", "fp32", True), ("long", "bf16", False))
TIMED = ("long",)
