"""The work of this topic. rsLoRA and LoRA+ are LoRA with another constant, which one row shows as well as five."""

from harness.spec import Grid, Row
from harness.spec.named import NAMED

ADAPTED = NAMED["thorough"].with_(name="adapted", steps=5)
KINDS = ("lora", "dora")

GRID = Grid(
    rows=(
        Row(ADAPTED, "fp32", True),
        Row(ADAPTED, "bf16", False, KINDS),
        Row("uneven_tied", "fp32", False, KINDS),
        Row("tiny", "fp32", True, full=True),
        Row("tiny", "bf16", False, full=True),
        Row("tiny_adamw", "fp32", False, full=True),
        Row("tiny_adamw", "bf16", True, full=True),
    ),
    timed=(),
    large=("medium",),
)
