"""The work of this topic: four micro-batches, of sequences of one length and of many."""

GRID = (
    ("accumulated", "fp32", True),
    ("accumulated", "bf16", False),
    ("unequal", "fp32", True),
    ("unequal", "bf16", False),
)
TIMED, TIMED_ON = ("accumulated",), ("dp2",)
