"""The work of this topic: sequences that every rank count divides and that none does, in both precisions."""

GRID = (
    ("tiny", "fp32", True),
    ("tiny_adamw", "bf16", False),
    ("uneven_tied", "fp32", True),
)
TIMED = ("tiny",)
