"""The work of this topic: a cache of sequences of different lengths, several query heads for each of its heads; and one
head for all with scores of 10⁴, which no unified maximum fits."""

from harness.spec import Grid, ModelConfig, Row, Workload

CACHE = Workload(
    "cache",
    ModelConfig(num_attention_heads=8, num_key_value_heads=2, head_dim=64),
    batch_size=5,
    sequence_length=1000,
)
SHARP = Workload(
    "cache_sharp",
    ModelConfig(num_attention_heads=4, num_key_value_heads=1, head_dim=64),
    batch_size=4,
    sequence_length=333,
    input_scale=64.0,
)
GRID = Grid(
    rows=(Row(CACHE, "fp32", True), Row(CACHE, "bf16", True), Row(SHARP, "fp32", True)),
    timed=("cache",),
    large=("long_cache",),
)
