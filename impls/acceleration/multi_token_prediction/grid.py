"""The work of this topic: sequences of one length, and of many, where ranks have unequal numbers of tokens."""

from harness.spec import Grid, Row
from harness.spec.named import NAMED

_THOROUGH = NAMED["thorough"]
EQUAL = _THOROUGH.with_(name="thorough_equal", min_length=0)
GRID = Grid(
    rows=(
        Row("thorough", "fp32", True),
        Row(EQUAL, "fp32", True),
        Row("thorough", "bf16", True),
        Row("tiny", "fp32", True),
    ),
    timed=("tiny",),
    timed_on=("dp2",),
)
