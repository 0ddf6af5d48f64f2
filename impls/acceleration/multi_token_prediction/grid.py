"""The work of this topic: sequences of one length, and of many, where ranks and micro-batches have unequal numbers of
tokens. Variants that compute the same share an oracle, so few of them run everywhere."""

from harness.spec import Grid, Row
from harness.spec.named import NAMED

_UNEQUAL = NAMED["thorough"]
EQUAL = _UNEQUAL.with_(name="thorough_equal", min_length=0)
GRID = Grid(
    rows=(
        Row(EQUAL, "fp32", True, ("mtp2",)),
        Row(EQUAL, "fp32", ("tp2",), ("mtp2_sp",)),
        Row("thorough", "fp32", True, ("mtp1",)),
        Row("thorough", "fp32", ("dp2", "tp2"), ("mtp3", "mtp2_over_t")),
        Row("thorough", "bf16", ("dp2", "tp2"), ("mtp2",)),
        Row("thorough", "bf16", ("tp2",), ("mtp2_sp",)),
        Row("uneven_tied", "fp32", ("dp2", "tp2"), ("mtp2",), full=True),
        Row("uneven_tied", "bf16", ("dp2",), ("mtp2",), full=True),
    ),
    timed=("thorough_equal",),
    timed_on=("dp2",),
    large=("medium",),
)
