"""FP8 training: the three products of a linear layer with operands of one byte, under the scaling recipes in use."""

from harness.spec import Card, Claim, Engine, Functions, Law
from impls.acceleration.fp8.grid import GRID

_HERE = "impls.acceleration.fp8"
_COURSE = "AIInfra course, practice on FP8"

CARD = Card(
    name="fp8",
    title="FP8 linear layers",
    sources=(
        "Micikevicius et al. 2022, FP8 formats for deep learning, arXiv:2209.05433, table 1, section 3.2",
        "DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 3.3",
        "OCP Microscaling Formats (MX) Specification v1.0, sections 5 and 6; Rouhani et al. 2023, arXiv:2310.10537",
    ),
    variants={
        "fp8_current": {"scaling": "tensor", "gradients": "e5m2"},
        "fp8_current_e4m3": {"scaling": "tensor", "gradients": "e4m3"},
        "fp8_delayed": {"scaling": "delayed", "gradients": "e5m2"},
        "fp8_rows": {"scaling": "rows", "gradients": "e4m3"},
        "fp8_blocks": {"scaling": "blocks", "gradients": "e4m3"},
        "mxfp8": {"scaling": "mx", "gradients": "e4m3"},
        "mxfp8_ceil": {"scaling": "mx_ceil", "gradients": "e4m3"},
    },
    engines={
        "reference": Engine(f"{_HERE}.reference:build"),
        "torch": Engine(f"{_HERE}.on_torch:build"),
        "torchao": Engine(
            f"{_HERE}.on_torchao:build",
            requires=("torchao>=0.18",),
            variants=("fp8_current", "fp8_current_e4m3", "fp8_rows", "mxfp8", "mxfp8_ceil"),
        ),
        "triton": Engine(f"{_HERE}.on_triton:build", requires=("triton>=3.5", "cuda", "sm89")),
        "transformer_engine": Engine(
            f"{_HERE}.on_transformer_engine:build",
            requires=("transformer-engine>=2.8", "cuda", "sm89"),
            variants=("fp8_current", "fp8_current_e4m3", "fp8_delayed", "fp8_blocks", "mxfp8_ceil"),
        ),
        "deepgemm": Engine(
            f"{_HERE}.on_deepgemm:build", requires=("deep-gemm>=2.1", "cuda", "sm90"), variants=("fp8_blocks",)
        ),
    },
    topologies=("dp1",),
    contract=Functions(f"{_HERE}.problem", exact=("x_scales", "weight_scales", "x_history", "weight_history")),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "saved",
            f"{_HERE}.laws:saved",
            0.01,
            "DeepSeek-V3, section 3.3.3: activations are kept in FP8 for the backward pass",
            direction="at_most",
        ),
    ),
    claims=(
        Claim(
            "fp8_casts",
            "a table of FP8 values made by a quantiser with one step for all sizes",
            _COURSE,
            f"{_HERE}.claims:casts",
        ),
        Claim("fp8_memory", "about 50 % memory", _COURSE, f"{_HERE}.claims:memory"),
        Claim("fp8_speed", "1.5–2 × faster", _COURSE, f"{_HERE}.claims:speed"),
        Claim(
            "fp8_accumulation",
            "about 14 bits in Hopper's accumulator: a maximum relative error of nearly 2 % at K = 4096",
            "DeepSeek-AI 2024, DeepSeek-V3, section 3.3.2",
            f"{_HERE}.claims:accumulation",
        ),
    ),
)
