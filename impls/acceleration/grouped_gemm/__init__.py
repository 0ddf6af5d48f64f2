"""Grouped matrix products: one launch for the experts of a mixture, each with rows of its own."""

from harness.spec import Card, Claim, Engine, Functions, Law
from impls.acceleration.grouped_gemm.grid import GRID

HERE = "impls.acceleration.grouped_gemm"
V3 = "DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437"
MEGABLOCKS = "Gale et al. 2022, MegaBlocks, arXiv:2211.15841"
GROUPED = {f"grouped_{layout}": {"layout": layout, "scaled": False} for layout in ("dense", "contiguous", "masked")}
SCALED = {f"{name}_scaled": {**variant, "scaled": True} for name, variant in GROUPED.items()}

CARD = Card(
    name="grouped_gemm",
    title="Grouped GEMM",
    sources=(f"{MEGABLOCKS}, section 3", f"{V3}, section 3.3.2", "Zhao et al. 2025, DeepGEMM, README: layouts"),
    variants={**GROUPED, **SCALED},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "triton": Engine(f"{HERE}.on_triton:build", requires=("triton>=3.4", "cuda")),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("grouped_dense", "grouped_contiguous")),
        "deep_gemm": Engine(
            f"{HERE}.on_deep_gemm:build",
            requires=("deep-gemm>=2.1", "sm90"),
            variants=("grouped_contiguous", *SCALED),
        ),
        "megatron": Engine(
            f"{HERE}.on_megatron:build",
            requires=("megatron-core>=0.16", "nv-grouped-gemm>=1.1.4", "cuda"),
            variants=("grouped_dense", "grouped_contiguous"),
        ),
        "transformer_engine": Engine(
            f"{HERE}.on_transformer_engine:build",
            requires=("transformer-engine>=2", "cuda"),
            variants=("grouped_dense", "grouped_contiguous"),
        ),
    },
    topologies=("dp1",),
    contract=Functions(f"{HERE}.problem", flops=f"{HERE}.laws:flops"),
    grid=GRID,
    # 1 %: allocators round each tensor up; engines keep the groups' offsets.
    laws=(Law("memory", "saved", f"{HERE}.laws:saved", 0.01, f"{MEGABLOCKS}, section 3", direction="at_most"),),
    claims=(
        Claim(
            "fourteen_bits",
            "K = 4096 with about 14 bits of accumulation: a maximum relative error of nearly 2 %",
            f"{V3}, section 3.3.2",
            f"{HERE}.claims:fourteen_bits",
        ),
        Claim(
            "promotion",
            "promotion to FP32 every 128 elements improves the precision without substantial overhead",
            f"{V3}, section 3.3.2",
            f"{HERE}.claims:promotion",
        ),
        Claim(
            "block_scales",
            "scales of 1×128 and 128×128 adapt to outliers by smaller groups of elements",
            f"{V3}, section 3.3.2",
            f"{HERE}.claims:block_scales",
        ),
        Claim(
            "ceiling",
            "DeepGEMM reaches up to 1550 TFLOP/s on an H800",
            "Zhao et al. 2025, DeepGEMM, README",
            f"{HERE}.claims:ceiling",
        ),
    ),
)
