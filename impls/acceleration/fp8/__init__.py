"""FP8 training: the three products of a linear layer with operands of one byte, under the scaling recipes in use."""

from harness.spec import Card, Engine, Functions, Law
from impls.acceleration.fp8.grid import GRID

_HERE = "impls.acceleration.fp8"

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
)
