"""The work of this topic."""

GRID = (("meshed", "fp32", True), ("meshed", "bf16", True))
TIMED = ("meshed",)
