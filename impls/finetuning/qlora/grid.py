"""The work of this topic."""

from harness.spec import Grid, Row

WHOLE = ("qlora", "qlora_single", "qlora_fp4")
SHARDED = ("qlora_sharded", "qlora_sharded_single")

GRID = Grid(
    rows=(
        Row("thorough", "fp32", ("dp1", "dp2"), WHOLE),
        Row("thorough", "bf16", ("dp2",), WHOLE),
        Row("tiny", "fp32", ("dp1",), WHOLE[:2]),
        Row("tiny_adamw", "bf16", ("dp2",), WHOLE[:2], full=True),
        Row("uneven_tied", "fp32", ("dp2",), WHOLE[1:2]),
        Row("thorough", "fp32", ("dp2", "dp4"), SHARDED),
        Row("thorough", "bf16", ("dp2",), SHARDED),
        Row("uneven_tied", "fp32", ("dp2",), SHARDED[1:]),
        Row("tiny_adamw", "bf16", ("dp4",), SHARDED[1:], full=True),
    ),
    timed=(),
    large=("medium",),
)
