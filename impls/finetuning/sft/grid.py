"""The work of this topic: conversations of unequal lengths in three micro-batches, with clipping and weight decay."""

from harness.spec import Grid, Row
from harness.spec.named import NAMED

CONVERSATIONS = NAMED["thorough"].with_(
    name="conversations", batch_size=24, min_length=0, sequence_length=40, steps=5, optimizer="sgd", lr=0.1
)
ALIKE = ("sft_padded", "sft_packed")
# These have oracles of their own.
APART = ("sft_truncated", "sft_truncated_left", "sft_padding_free_left", "sft_packed_left", "sft_neftune")
SHARED = (
    *ALIKE,
    "sft_packed_eager",
    "sft_packed_flex",
    "sft_padding_free",
    "sft_assistant_only",
    "sft_assistant_packed",
    "sft_smoothed",
    "sft_resumed",
)
GRID = Grid(
    rows=(
        Row(CONVERSATIONS, "fp32", False),
        Row(CONVERSATIONS, "fp32", ("dp1", "dp4"), ALIKE),
        Row(CONVERSATIONS, "bf16", False, (*SHARED, "sft_sharded")),
        Row(CONVERSATIONS.with_(name="long_conversations"), "bf16", False, APART, full=True),
    ),
    timed=(),
)
