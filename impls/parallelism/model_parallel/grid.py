"""The work of this topic: one micro-batch, and layers that the ranks divide."""

from harness.spec.named import NAMED

GRID = (
    ("tiny", "fp32", True),
    ("tiny", "bf16", False),
    (NAMED["pipelined_tied"].with_(name="deep_tied", micro_batches=1), "fp32", True),
)
TIMED = ("tiny",)
