"""The work of this topic: a length that is not a multiple of a tile, in both precisions; scores so large that exp
overflows; and for everything else that attention has to get right, sequences of a few tiles."""

from harness.spec import Grid, ModelConfig, Row, Workload

SIMPLE = ("fa1", "fa2", "fa2_causal")
RULES = ("fa2_window", "fa2_softcap", "fa2_sinks", "fa2_top_left", "fa2_bottom_right", "fa2_unseen", "fa2_varlen")


def _heads(queries: int, keys: int, width: int) -> ModelConfig:
    return ModelConfig(num_attention_heads=queries, num_key_value_heads=keys, head_dim=width)


RAGGED = Workload("ragged", _heads(4, 2, 64), batch_size=2, sequence_length=150)
# One head of keys for all queries, of the largest width that kernels take.
MQA = Workload("mqa", _heads(4, 1, 256), batch_size=1, sequence_length=140)
BROAD = Workload("broad", _heads(2, 2, 128), batch_size=1, sequence_length=140)

GRID = Grid(
    rows=(
        Row("long", "fp32", True, SIMPLE),
        Row("long", "bf16", True, SIMPLE),
        Row("sharp", "fp32", True, SIMPLE),
        Row(RAGGED, "fp32", True, RULES),
        Row(RAGGED, "bf16", True, RULES),
        Row(MQA, "bf16", True, ("fa2_causal",)),
        Row(BROAD, "bf16", True, ("fa2_causal",)),
    ),
    timed=("long",),
    large=("attention_4k",),
)
