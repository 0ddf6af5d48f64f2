"""The work of this topic: rows, outputs and inputs that are no multiple of a tile; and DeepSeek-V3's experts on a
GPU."""

from harness.spec import Grid, MoeConfig, Row, Workload

# 519 rows of 5 experts; n = 208 and k = 320 leave a rest of blocks of 128, and are multiples of 16 bytes, as torch
# requires.
EXPERTS = Workload(
    "experts",
    MoeConfig(hidden_size=320, moe_intermediate_size=104, num_experts=5, num_experts_per_tok=3),
    batch_size=1,
    sequence_length=173,
)
GRID = Grid(
    rows=(Row(EXPERTS, "fp32", True), Row(EXPERTS, "bf16", True)), timed=("experts",), large=("deepseek_v3_experts",)
)
