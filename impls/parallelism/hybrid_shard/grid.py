"""The work of this topic: four micro-batches, of which MiCS lets only the sum cross; uneven sizes and tied weights."""

GRID = (
    ("accumulated", "fp32", True),
    ("accumulated", "bf16", False),
    ("tiny_adamw", "bf16", False),
    ("uneven_tied", "fp32", True),
)
TIMED = ("accumulated",)
