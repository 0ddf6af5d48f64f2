"""The work of this topic: a deep, narrow model, whose √L is far from L, without and with dropout."""

from dataclasses import replace

from harness.spec import Grid, ModelConfig, Row, Workload

# Sequences are as long as the model is wide, so that scores are a good part of what a layer keeps.
_DEEP = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=16,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
)
DEEP = Workload("deep", _DEEP, batch_size=4, sequence_length=64)
DROPPED = DEEP.with_(name="deep_dropped", model=replace(_DEEP, dropout=0.1))

WHOLE = ("recompute_layers", "recompute_operators")

# Dropout is for one rank and has no oracle: there every variant's gradients are compared bit by bit with those of no
# recomputation, whose parity is judged through the others, on work whose oracles other topics need too.
GRID = Grid(
    rows=(
        Row(DROPPED, "fp32", ("dp1",)),
        Row("thorough", "fp32", ("dp2",), WHOLE),
        Row("tiny", "fp32", ("tp2",), WHOLE[:1]),
        Row("tiny", "bf16", ("tp2",), WHOLE[:1]),
        Row("uneven_tied", "fp32", True, full=True),
        Row("uneven_tied", "bf16", False, full=True),
    ),
    timed=("thorough",),
    timed_on=("dp2",),
    large=("medium",),
)
