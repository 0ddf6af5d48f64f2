"""The work of this topic."""

from dataclasses import replace

from harness.spec import Grid, Row
from harness.spec.named import NAMED

WHOLE = ("qlora", "qlora_single", "qlora_fp4")
SHARDED = ("qlora_sharded", "qlora_sharded_single")

# Rows of whole blocks, and scales whose number no block of theirs divides.
_THOROUGH = NAMED["thorough"]
_MODEL = replace(_THOROUGH.model, hidden_size=64, intermediate_size=192, head_dim=16)
BLOCKS = _THOROUGH.with_(name="blocks", model=_MODEL)

GRID = Grid(
    rows=(
        Row(BLOCKS, "fp32", ("dp1", "dp2"), WHOLE),
        Row(BLOCKS, "bf16", ("dp2",), WHOLE),
        Row("tiny", "fp32", ("dp1",), WHOLE),
        Row("uneven_tied", "fp32", ("dp2",), WHOLE[1:2]),
        Row("thorough", "fp32", ("dp1",), WHOLE[1:2]),
        Row(BLOCKS, "fp32", ("dp2", "dp4"), SHARDED),
        Row(BLOCKS, "bf16", ("dp2",), SHARDED),
        Row("uneven_tied", "fp32", ("dp2",), SHARDED),
    ),
    timed=(),
    large=("medium",),
)
