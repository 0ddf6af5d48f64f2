"""The work of this topic: conversations of unequal lengths in three micro-batches, with clipping and weight decay."""

from dataclasses import replace

from harness.spec import Grid, Row
from harness.spec.named import NAMED

CONVERSATIONS = NAMED["thorough"].with_(
    name="conversations", batch_size=24, min_length=0, sequence_length=40, steps=5, optimizer="sgd", lr=0.1
)
# The same batch in micro-batches of one, at once, and on four ranks: all are compared with the same dense model.
EIGHT = CONVERSATIONS.with_(batch_size=8)
ONE_BY_ONE = EIGHT.with_(name="one_by_one", micro_batches=8)
AT_ONCE = EIGHT.with_(name="at_once", micro_batches=1)
TWO_EACH = EIGHT.with_(name="two_each", micro_batches=2)
# The second layer's window is shorter than most conversations.
WINDOWS = CONVERSATIONS.with_(name="windows", model=replace(CONVERSATIONS.model, sliding_window=7, sliding_layers=(1,)))

ALIKE = ("sft_padded", "sft_packed")
# These have oracles of their own.
APART = ("sft_truncated_left", "sft_packed_left", "sft_neftune")
SHARED = (
    *ALIKE,
    "sft_packed_eager",
    "sft_packed_flex",
    "sft_padding_free",
    "sft_assistant_only",
    "sft_smoothed",
    "sft_resumed",
)
# What these combine, the others show each alone.
COMBINED = ("sft_truncated", "sft_padding_free_left", "sft_assistant_packed")
WINDOWED = (*ALIKE, "sft_packed_eager", "sft_padding_free")
GRID = Grid(
    rows=(
        Row(CONVERSATIONS, "fp32", False, (*SHARED, *APART, "sft_sharded")),
        Row(CONVERSATIONS, "fp32", ("dp1", "dp4"), ("sft_padded",)),
        Row(CONVERSATIONS, "bf16", False, (*SHARED, "sft_sharded")),
        Row(WINDOWS, "fp32", False, WINDOWED),
        Row(CONVERSATIONS.with_(name="combined"), "fp32", False, COMBINED, full=True),
        Row(CONVERSATIONS.with_(name="long_conversations"), "bf16", False, (*APART, *COMBINED), full=True),
        Row(ONE_BY_ONE, "fp32", ("dp1",), ALIKE, full=True),
        Row(AT_ONCE, "fp32", ("dp1",), ALIKE, full=True),
        Row(TWO_EACH, "fp32", ("dp4",), ALIKE, full=True),
    ),
    timed=(),
)
