"""The work of this topic: unequal conversations in four micro-batches, and fewer key heads than four ranks need."""

from dataclasses import replace

from harness.spec import Grid, Row
from impls.finetuning.sft.grid import CONVERSATIONS

CUT = CONVERSATIONS.with_(
    name="cut_conversations", model=replace(CONVERSATIONS.model, num_key_value_heads=2), micro_batches=4
)
# The second layer's window is shorter than most conversations, and does not end where a rank's part does.
WINDOWED = CUT.with_(name="cut_windows", model=replace(CUT.model, sliding_window=7, sliding_layers=(1,)))

GRID = Grid(
    rows=(
        Row(CUT, "fp32", True),
        Row(CUT, "bf16", False),
        Row(WINDOWED, "fp32", False),
        Row(WINDOWED, "bf16", ("dp2cp2",), full=True),
    ),
    timed=(),
)
