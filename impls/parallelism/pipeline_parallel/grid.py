"""The work of this topic: enough micro-batches to fill a pipeline, a layer for each of two stages a rank."""

from dataclasses import replace

from harness.spec import Grid, ModelConfig, Row, Workload
from harness.spec.named import NAMED
from impls.parallelism.pipeline_parallel.schedules import SCHEDULES

# One stage a rank and several, backward passes in two parts, a rank with both ends, two copies, weights that lag.
KINDS = ("1f1b", "interleaved", "interleaved_zb", "zb_v", "dual_pipe", "pipedream_2bw")
# The law of the bubble speaks of computing and of equal stages: an action takes fifty times as long as what it sends,
# and head and loss are a hundredth of the last stage.
_WIDE = ModelConfig(
    vocab_size=32,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
_BOUND = Workload("compute_bound", _WIDE, batch_size=16, micro_batches=8, sequence_length=64)
# Ranks that share cores are judged by their actions alone, which half as much computing tells.
_SHORT = _BOUND.with_(name="compute_bound_short", batch_size=8)
# A tenth of the smallest bubble, 0.003 of a step, is no more than what hundreds of messages take beside such actions.
_LONG = _BOUND.with_(name="compute_bound_long", batch_size=64)
_SMALLEST = ("interleaved_zb",)
# Four layers, two for each of two stages a rank; six micro-batches, twice as many as there are stages at the most.
THOROUGH = NAMED["thorough"].with_(
    name="thorough_deep", model=replace(NAMED["thorough"].model, num_hidden_layers=4), micro_batches=6
)
GRID = Grid(
    rows=(
        Row(THOROUGH, "fp32", False),
        Row("pipelined", "fp32", False),
        Row("pipelined", "bf16", False, KINDS),
        Row("pipelined_tied", "fp32", False, KINDS),
        Row("pipelined_deep", "fp32", ("pp4", "pp8")),
        Row("pipelined_deep_tied", "fp32", ("pp8",)),
    ),
    timed=("pipelined", "pipelined_deep"),
    watched=(
        Row(_BOUND, "fp32", ("pp2",), tuple(name for name in SCHEDULES if name not in _SMALLEST)),
        Row(_LONG, "fp32", ("pp2",), _SMALLEST),
        Row(_SHORT, "fp32", ("pp4",)),
    ),
)
