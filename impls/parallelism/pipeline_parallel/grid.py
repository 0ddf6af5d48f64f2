"""The work of this topic: enough micro-batches to fill a pipeline, layers for four ranks of two stages."""

GRID = (
    ("pipelined", "fp32", True),
    ("pipelined", "bf16", False),
    ("pipelined_tied", "fp32", True),
)
TIMED = ("pipelined",)
