"""The work of this topic. A row's precision is that of its variants.

No step of this seed comes near overflow without it, or overflows by little, and neither does any of the draws behind
the noise floor: every engine in float16 skips the steps that the float64 oracle does.
"""

from dataclasses import replace

from harness.spec import Grid, Row
from harness.spec.named import NAMED

_SMALL = NAMED["thorough"]
SCALED = _SMALL.with_(
    name="scaled", model=replace(_SMALL.model, num_hidden_layers=1), batch_size=8, micro_batches=2, steps=5, seed=15
)
FP16 = ("fp16_dynamic", "fp16_hysteresis", "fp16_static", "fp16_narrow", "fp16_autocast")
BF16 = ("bf16_masters", "bf16_narrow", "bf16_autocast", "bf16_pure")

GRID = Grid(
    rows=(
        Row(SCALED, "fp16", True, FP16),
        Row(SCALED, "bf16", True, BF16),
        # Without clipping, SGD's steps show the scale of a gradient.
        Row("tiny", "fp16", False, ("fp16_static", "fp16_narrow")),
    ),
    timed=(),
)
