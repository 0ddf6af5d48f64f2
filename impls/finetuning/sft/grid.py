"""The work of this topic: conversations of unequal lengths in three micro-batches, with clipping and weight decay."""

from harness.spec import Grid, Row
from harness.spec.named import NAMED

CONVERSATIONS = NAMED["thorough"].with_(
    name="conversations", batch_size=24, min_length=0, sequence_length=40, steps=5, optimizer="sgd", lr=0.1
)
NARROW = ("sft_padded", "sft_packed", "sft_padding_free", "sft_smoothed")
BROAD = (*NARROW, "sft_assistant_only", "sft_truncated_left", "sft_packed_left", "sft_resumed", "sft_neftune")
REST = ("sft_packed_eager", "sft_packed_flex", "sft_assistant_packed", "sft_truncated")
GRID = Grid(
    rows=(
        Row(CONVERSATIONS, "fp32", False, BROAD),
        Row(CONVERSATIONS, "fp32", False, REST, full=True),
        Row(CONVERSATIONS, "fp32", ("dp1", "dp4"), NARROW, full=True),
        Row(CONVERSATIONS, "bf16", ("dp1",), NARROW),
        Row(CONVERSATIONS, "bf16", False, full=True),
    ),
    timed=(),
)
