"""The work of this topic: a decoder of one layer, whose rows are whole blocks of four-bit scales."""

from harness.spec import Grid, ModelConfig, Row, Workload

DIGITS = Workload(
    "digits",
    ModelConfig(
        vocab_size=17,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
    ),
    batch_size=32,
    sequence_length=16,
    optimizer="adamw",
    max_grad_norm=1.0,
)
# AdamW does not see the scale of a gradient, and neither does SGD where gradients are clipped.
DESCENT = DIGITS.with_(name="descent", optimizer="sgd", max_grad_norm=0.0)
STEPS = 24
ADAPTED = ("curve_lora", "curve_qlora", "curve_ia3")

GRID = Grid(
    rows=(
        Row(DIGITS, "fp32", True, ("curve_sft", *ADAPTED)),
        Row(DIGITS, "bf16", True, ADAPTED, full=True),
        Row(DESCENT, "fp32", True, ("curve_lora_sgd",), full=True),
    ),
    timed=(),
)
