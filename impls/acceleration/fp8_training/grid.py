"""300 steps of a decoder with 45 thousand parameters, with five seeds; at full depth every recipe, with five more."""

from harness.spec import Grid, ModelConfig, Row, Workload

_MODEL = ModelConfig(
    vocab_size=32,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
)
SHORT = Workload("sentences", _MODEL, batch_size=4, sequence_length=16, lr=5e-3)
MORE = SHORT.with_(name="more_sentences", seed=100)

GRID = Grid(
    (
        Row(SHORT, "fp32", True, ("curve_fp32", "curve_bf16", "curve_fp8_blocks")),
        Row(MORE, "fp32", True, full=True),
    ),
    timed=(),
)
