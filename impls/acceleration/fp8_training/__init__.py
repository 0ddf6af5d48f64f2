"""Training curves with FP8 products: whether a recipe learns as well as bf16."""

from harness.spec import Card, Claim, Engine, Flows
from impls.acceleration.fp8_training.grid import GRID

_HERE = "impls.acceleration.fp8_training"
_V3 = "DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437"

CARD = Card(
    name="fp8_training",
    title="FP8 training curves",
    sources=(
        f"{_V3}, section 3.3 and appendix B.1",
        "Micikevicius et al. 2022, FP8 formats for deep learning, section 4",
    ),
    variants={
        "curve_fp32": {"scaling": "fp32", "gradients": "fp32"},
        "curve_bf16": {"scaling": "bf16", "gradients": "bf16"},
        "curve_fp8_current": {"scaling": "tensor", "gradients": "e5m2"},
        "curve_fp8_current_e4m3": {"scaling": "tensor", "gradients": "e4m3"},
        "curve_fp8_delayed": {"scaling": "delayed", "gradients": "e5m2"},
        "curve_fp8_rows": {"scaling": "rows", "gradients": "e4m3"},
        "curve_fp8_blocks": {"scaling": "blocks", "gradients": "e4m3"},
        "curve_mxfp8": {"scaling": "mx", "gradients": "e4m3"},
        "curve_mxfp8_ceil": {"scaling": "mx_ceil", "gradients": "e4m3"},
    },
    engines={"reference": Engine(f"{_HERE}.reference:run")},
    topologies=("dp1",),
    contract=Flows("loss", better="lower", seeds=5, budget=1200),  # 300 steps of 4 sentences
    grid=GRID,
    claims=(
        Claim(
            "fp8_loss",
            "relative loss error against bf16 consistently below 0.25 %",
            f"{_V3}, section 3.3 and appendix B.1",
            f"{_HERE}.claims:loss",
        ),
        Claim(
            "fp8_mlp",
            "loss 2.1954 (fp32) against 2.2115 (FP8), 5 epochs, MLP 100-64-10",
            "AIInfra course, practice on FP8",
            f"{_HERE}.claims:mlp",
        ),
    ),
)
