"""The work of this topic: a layer on a few hundred tokens, of even and of odd sizes."""

GRID = (("tiny", "fp32", True), ("tiny", "bf16", False), ("uneven", "fp32", False))
TIMED, TIMED_ON = ("tiny",), ("dp2ep2",)
