"""The work of this topic: grouped queries, tied embeddings and experts; and published models, as shapes."""

from harness.spec import Grid, Row
from impls.analysis.bottleneck.published import LLAMA3_8B, LLAMA3_70B, PALM_540B, QWEN3_30B_A3B

FORMULAS = ("flops_causal", "flops_total", "flops_total_causal", "flops_six_n")
LARGE = ("flops_recomputed", *FORMULAS)  # minutes under a profiler
COUNTED = ("flops_whole", "flops_recomputed", "flops_selective", *FORMULAS)  # of engines that see shapes called
DENSE = ("flops_flash", *COUNTED)  # without experts there is nothing to group

GRID = Grid(
    rows=(
        Row("tiny", "fp32", True, DENSE),
        Row("uneven_tied", "fp32", True, COUNTED),  # CUDA's fused kernels pad its heads, and are counted as padded
        Row("meshed_experts", "fp32", True),
        Row("qwen3-0.6b", "bf16", True, FORMULAS),
        Row("tiny", "bf16", True, DENSE, full=True),
        Row(LLAMA3_8B, "bf16", True, LARGE, full=True),
        Row(LLAMA3_70B, "bf16", True, FORMULAS, full=True),
        Row(PALM_540B, "bf16", True, LARGE, full=True),
        Row(QWEN3_30B_A3B, "bf16", True, FORMULAS, full=True),
    ),
    timed=(),  # a count has no speed of interest
)
