"""The work of this topic; in float64 no rounding decision is in doubt (reference.py)."""

GRID = (("tiny", "fp32", False), ("tiny_adamw", "bf16", True), ("uneven_tied", "fp64", True))
TIMED = ("tiny",)
